"""What ranks share equals what one process does: `python shards.py RANK WORLD FOLDER LONG`.

Every case runs in one process group, in the order of CASES on all ranks. What a case returns, a
list of faults, or its traceback, is in `FOLDER/<case>.<rank>`. After a traceback a rank stops, as
the others may wait for it.
"""

import datetime
import logging
import os
import random
import sys
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed import _functional_collectives as funcol
from torch.distributed.checkpoint import state_dict as of_torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

import rai_chain as rc
from rai_chain.distributed import PipelineState, pipeline_hook
from rai_chain.optim import ChainedParamTransformingOptimizer

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "links")]
sys.path.append(str(TESTS.parent))
import test_laws as laws_of_links  # noqa: E402

from benchmarks import scale  # noqa: E402

DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
TRAINED = ("hook", "replicas", "fsdp", "checkpoint", "resumed", "homes")
SENT, SIZES = Counter(), []
SLACK = (0, 4)  # FSDP's own sum of equal gradients is exact up to four of them
_all_reduce = funcol.all_reduce


def counted(x, *args, **kwargs):
    SIZES.append(x.numel() * x.element_size())
    SENT.update(collectives=1, bytes=SIZES[-1])
    return _all_reduce(x, *args, **kwargs)


# ------------------------------------------------------------------ cutting and comparing


def places(mesh, placements, shape):
    """The places of each dimension that are here, by torch's own split."""
    found, at = [], mesh.get_coordinate()
    for d, size in enumerate(shape):
        own = torch.arange(size)
        for i, placement in enumerate(placements):
            if getattr(placement, "dim", None) == d:
                factor = getattr(placement, "split_factor", None)
                along = Shard(0) if factor is None else _StridedShard(0, split_factor=factor)
                parts, _ = along._split_tensor(own, mesh.size(i), with_padding=False)
                own = parts[at[i]] if at[i] < len(parts) else own[:0]
        found.append(own)
    return found


def cut(full, mesh, placements):
    local = full
    for d, own in enumerate(places(mesh, placements, full.shape)):
        local = local.index_select(d, own)
    return DTensor.from_local(
        local.clone(), mesh, placements, run_check=False, shape=full.shape, stride=full.stride()
    )


def differs(x, full, ulps=0):
    """How what is here differs from its part of the full tensor; None where it does not."""
    if not isinstance(x, DTensor):
        return f"a {type(x).__name__}"
    here = cut(full, x.device_mesh, x.placements).to_local()
    mine = x.to_local()
    if mine.dtype != here.dtype or mine.shape != here.shape:
        return f"{mine.dtype} {mine.shape} for {here.dtype} {here.shape}"
    if not torch.equal(mine.isnan(), here.isnan()):
        return "NaN elsewhere"
    if torch.equal(mine.nan_to_num(0.0), here.nan_to_num(0.0)):
        return None
    finite = full.double()[full.isfinite()].abs()
    scale = torch.finfo(full.dtype).eps * max(float(finite.max()) if len(finite) else 0.0, 1e-300)
    off = (mine.double() - here.double()).nan_to_num(0.0, 0.0, 0.0).abs().max() / scale
    infinite = not torch.equal(mine.isinf(), here.isinf())
    return f"{float(off):.2f} ulps" if infinite or off > ulps else None


def meshes(world):
    found = [init_device_mesh("cpu", (world,))]
    if world % 4 == 0:
        names = ("dp", "tp")
        found.append(init_device_mesh("cpu", (2, world // 2), mesh_dim_names=names))
    if world % 8 == 0:
        found.append(init_device_mesh("cpu", (2, 2, world // 4), mesh_dim_names=("a", "b", "c")))
    return found


def placed(rng, ndim, mesh):
    """Any placement: on any dimension, strided, replicated."""
    if mesh.ndim == 2 and rng.random() < 0.3:
        d = rng.randrange(ndim)
        return (_StridedShard(d, split_factor=mesh.size(1)), Shard(d))
    return tuple(
        Replicate() if rng.random() < 0.2 else Shard(rng.randrange(ndim)) for _ in range(mesh.ndim)
    )


def values(rng, shape, dtype, finite=False):
    """Random numbers; ties, zeros, NaN, infinities, and very small and very large ones."""
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    kind = rng.choice([0, 1, 2, 4, 6, 7] if finite else range(8))
    if kind == 1:
        x = x.round()
    if kind == 2:
        x = x * (torch.rand(shape, generator=g) < 0.2)
    if kind == 3:
        x[torch.rand(shape, generator=g) < 0.15] = torch.nan
    if kind == 4:
        x = torch.sign(x)
    if kind == 5:
        x[torch.rand(shape, generator=g) < 0.1] = torch.inf
    x = (x * {6: 1e-42, 7: 1e37}.get(kind, 1.0)).to(dtype)
    return x.nan_to_num(0.0) if finite else x  # the ends of the range for infinities of float16


# ------------------------------------------------------------------ links

# To the bit: what is elementwise, chosen or drawn.
EXACT = {
    "top_q": lambda q, n: rc.top_q(q, param_ndim=n),
    "top_q, drawn": lambda q, n: rc.top_q(0.5, 0.3, param_ndim=n),
    "top_k": lambda q, n: rc.top_k(3, param_ndim=n),
    "random_k": lambda q, n: rc.random_k(3, param_ndim=n),
    "terngrad": lambda q, n: rc.terngrad(param_ndim=n),
    "one_hot_sign": lambda q, n: rc.one_hot_sign(param_ndim=n),
    "l1_oracle": lambda q, n: rc.l1_oracle(2.0, param_ndim=n),
    "normalize, inf": lambda q, n: rc.normalize(float("inf"), param_ndim=n),
    "clip_by_norm, inf": lambda q, n: rc.clip_by_norm(0.3, float("inf"), param_ndim=n),
    "clamp": lambda q, n: rc.clamp(-0.3, 0.3),
    "sign": lambda q, n: rc.chain(rc.top_q(q, param_ndim=n), rc.sign()),
    "add_noise": lambda q, n: rc.add_noise(std=0.5, seed=3),
    "ema": lambda q, n: rc.ema(0.9),
    "adam": lambda q, n: rc.scale_by_adam(),
    "sgd": lambda q, n: rc.sgd(0.1, 0.9),
    "linf_ball": lambda q, n: rc.linf_ball(0.3, center=0.1),
    "soft_threshold": lambda q, n: rc.soft_threshold(0.3),
    "frank_wolfe": lambda q, n: rc.chain(rc.l1_oracle(2.0, param_ndim=n), rc.frank_wolfe_step()),
    "error_feedback": lambda q, n: rc.error_feedback(rc.top_q(q, param_ndim=n)),
    "apply_if_finite": lambda q, n: rc.apply_if_finite(rc.top_q(q, param_ndim=n), 2),
    "conditionally": lambda q, n: rc.conditionally(
        rc.top_q(q, param_ndim=n), lambda leaves, step: leaves[0].abs().amax() > 0.5
    ),
    "accumulate": lambda q, n: rc.accumulate(rc.top_q(q, param_ndim=n), 2),
    "masked": lambda q, n: rc.masked(rc.top_q(q, param_ndim=n), lambda path: path != "1"),
    "lookahead": lambda q, n: rc.lookahead(rc.sgd(0.1), 2),
    "record": lambda q, n: rc.chain(rc.record("s", rc.sparsity), rc.top_q(q, param_ndim=n)),
    "scheduled": lambda q, n: rc.chain(rc.scale(lambda step: 1 / (1 + step)), rc.top_k(3)),
    "from_torch": lambda q, n: rc.chain(
        rc.top_q(q, param_ndim=n), rc.from_torch(torch.optim.AdamW, lr=0.1)
    ),
}
# To 4 ulps of the largest element: sums.
CLOSE = {
    "normalize, 1": lambda q, n: rc.normalize(1, param_ndim=n),
    "normalize, 2": lambda q, n: rc.normalize(2, param_ndim=n),
    "normalize, 3": lambda q, n: rc.normalize(3, param_ndim=n),
    "normalize, 40": lambda q, n: rc.normalize(40, param_ndim=n),
    "clip_by_norm": lambda q, n: rc.clip_by_norm(0.3, param_ndim=n),
    "centralize": lambda q, n: rc.centralize(param_ndim=n),
    "clip_by_global_norm": lambda q, n: rc.clip_by_global_norm(0.3),
    "normalize_by_update_norm": lambda q, n: rc.normalize_by_update_norm(),
    "adaptive_grad_clip": lambda q, n: rc.adaptive_grad_clip(0.5, param_ndim=n),
    "clip_by_block_rms": lambda q, n: rc.clip_by_block_rms(0.1),
    "scale_by_trust_ratio": lambda q, n: rc.scale_by_trust_ratio(),
    "lamb": lambda q, n: rc.lamb(0.1),
    "qsgd": lambda q, n: rc.qsgd(5, param_ndim=n),
    "ef_sign": lambda q, n: rc.ef_sign(param_ndim=n),
    "l1_ball": lambda q, n: rc.l1_ball(0.5, param_ndim=n),
    "l2_ball": lambda q, n: rc.l2_ball(0.5, param_ndim=n),
    "l1_ball, around": lambda q, n: rc.l1_ball(0.5, 0.1, param_ndim=n),
    "l2_ball, around": lambda q, n: rc.l2_ball(0.5, 0.1, param_ndim=n),
    "simplex": lambda q, n: rc.simplex(param_ndim=n),
    "group_soft_threshold": lambda q, n: rc.group_soft_threshold(0.5, param_ndim=n),
    "a user's row link": lambda q, n: spread_of_rows(param_ndim=n),
    "a user's tree link": lambda q, n: share(),
}


@rc.rowwise
def spread_of_rows(rows, floor=1e-3):
    """Reductions of many kinds, written for plain tensors."""
    low, high = rows.amin(1, keepdim=True), rows.amax(dim=1, keepdim=True)
    wide = (high - low).clamp(min=floor)
    size = torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True)
    full = (rows.abs() < 1e9).all(1, keepdim=True)
    return torch.where(
        full, (rows - low) / wide + 0 * rows.sum(1, keepdim=True), (0 * size).to(rows)
    )


@rc.treewise
def share(leaves):
    total = sum(leaf.abs().sum() for leaf in leaves)
    return [leaf / total.clamp(min=1e-3) for leaf in leaves]


def use(tx, params, grads, steps=2):
    """Two uses of a link in its phase: all that came out."""
    state, out = tx.init(params), []
    for _ in range(steps):
        if all(link.phase == "gradient" for link in tx.links):
            new, state = tx.update(grads, state, params=params)
        else:
            new, state = tx.step(params, grads, state)
        out += new
    return out


def laws(kind, count, world):
    """Links on random shapes, placements, dtypes and numbers, all leaves of one tree."""
    rng, exact = random.Random(world), kind == "exact"
    makers = EXACT if exact else CLOSE
    at, faults = meshes(world), []
    for name in [*makers] * count:
        mesh, dtype = rng.choice(at), rng.choice(DTYPES)
        params, grads, where = [], [], []
        for _ in range(rng.randrange(2, 5)):
            ndim = rng.randrange(1, 4)
            shape = [rng.choice([1, 2, 3, 5, 8, 13]) for _ in range(ndim)]
            shape[-1] = rng.choice([40, 300]) if rng.random() < 0.2 else shape[-1]
            where.append(placed(rng, ndim, mesh))
            # Sums of infinities, and of what leaves the range, are NaN or not by their order.
            params.append(values(rng, shape, dtype, finite=not exact))
            grads.append(values(rng, shape, dtype, finite=not exact))
        n = rng.choice([None, -1, -1, 1, 0])
        tx = makers[name](rng.choice([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]), n)
        expected = use(tx, params, grads)
        mine = [[cut(x, mesh, p) for x, p in zip(xs, where, strict=True)] for xs in (params, grads)]
        found = use(tx, *mine)
        for x, full, p in zip(found, expected, [*where, *where], strict=True):
            off = differs(x, full, 0 if exact else 4)
            if off or x.placements != p:
                faults.append(f"{name} of {tuple(full.shape)} {dtype}, {p}, rows {n}: {off}")
    return faults


# What needs whole matrices, or whole rows, is refused; what asks for more than gradients is left.
OF_MATRICES = {"group_l1_ball", "group_l1_ball, inside", "nuclear_ball", "nuclear_ball, inside"}
OF_MATRICES |= {"orthogonal", "scale_by_factored_rms", "scale_by_muon"}
OF_ROWS = {"normalize_std", "l1_ball", "l1_ball, behind", "l2_ball", "l2_ball, behind"}  # in a box
ELSEWHERE = {"differentially_private_aggregate", "sam", "scale_by_polyak"}


def every_link(world):
    """All that is exported, as tests/links has it: what one process does, or refused by name."""
    mesh, faults, shapes = meshes(world)[0], [], [(5, 7), (6,), (3, 4, 2)]
    params, grads = (
        [
            torch.randn(s, generator=torch.Generator().manual_seed(at + i))
            for i, s in enumerate(shapes)
        ]
        for at in (0, 10)
    )
    for name in [n for n in laws_of_links.NAMES if n not in ELSEWHERE]:
        for dims in ((1, 0, 1), (0, 0, 0)):
            tx, where = laws_of_links.make(name), [[Shard(d)] for d in dims]
            expected = use(tx, params, grads)
            mine = [
                [cut(x, mesh, p) for x, p in zip(xs, where, strict=True)] for xs in (params, grads)
            ]
            whole = name in OF_MATRICES or name.endswith(", tree")
            try:
                found = use(tx, *mine)
            except NotImplementedError as error:
                known = whole or (name in OF_ROWS and dims[0] == 1)
                faults += [] if known and "ranks share" in str(error) else [f"{name}: {error}"]
                continue
            off = [differs(x, full, 4) for x, full in zip(found, expected, strict=True)]
            faults += [f"{name} cut by {dims}: {off}"] if any(off) or whole else []
    return faults


def homes(world):
    """The optimizer on shards does what the pure home does without; gradients partly summed too."""
    mesh, faults = meshes(world)[-1], []
    torch.manual_seed(0)
    shapes = [(5, 7), (4, 6), (3, 1), (9,)]
    where = [tuple(Shard(min(i, len(s) - 1)) for i in range(mesh.ndim)) for s in shapes]
    params, grads = ([torch.randn(s) for s in shapes] for _ in range(2))
    links = rc.scale(2.0), rc.top_q(0.5, param_ndim=None), rc.ema(0.9), rc.clip_by_global_norm(1.0)
    links = *links, rc.l2_ball(1.0, param_ndim=None)
    parts = [cut(p, mesh, w).requires_grad_() for p, w in zip(params, where, strict=True)]
    alone = [p.clone().requires_grad_() for p in params]
    optimizers = []
    for own in (parts, alone):
        optimizers.append(ChainedParamTransformingOptimizer(*links, params=own, lr=0.1))
    partial_sums = [Partial()] * mesh.ndim
    for step in range(3):
        for own, one, g, w in zip(parts, alone, grads, where, strict=True):
            one.grad = (g + step).clone()
            own.grad = cut(g + step, mesh, w)
            if step:
                own.grad = DTensor.from_local((g + step) / world, mesh, partial_sums)
                first = own.grad
        for optimizer in optimizers:
            optimizer.step()
        assert step == 0 or parts[-1].grad is not first
    for own, one in zip(parts, alone, strict=True):
        faults += [off for off in [differs(own.detach(), one.detach(), 4)] if off]
    return faults


def drawn_alike(world):
    """A generator of one's own draws as in one process; torch's default one is refused."""
    mesh, g, faults = meshes(world)[0], torch.arange(24.0), []

    def made(params, generator):
        return rc.optim.TopQGradientOptimizer(
            params, q=0.5, dq=0.3, generator=generator, param_ndim=None, lr=1.0
        )

    params = []
    for full in (g, cut(g, mesh, [Shard(0)])):
        p = (full * 0).requires_grad_()
        optimizer = made([p], torch.Generator().manual_seed(3))
        p.grad = full
        optimizer.step()
        params.append(p.detach())
    faults += [off for off in [differs(params[1], params[0])] if off]
    try:
        made([params[1].requires_grad_()], None)
        faults.append("no refusal")
    except ValueError as error:
        faults += [] if "same seed in each process" in str(error) else [str(error)]
    return faults


def refusals(world):
    """What cannot be done on shards is refused by name, on all ranks, before anything hangs."""
    mesh = meshes(world)[0]

    @rc.rowwise
    def sorts(rows):
        return rows.sort(dim=1).values

    @rc.rowwise(state=lambda rows: {"kept": torch.zeros_like(rows)})
    def keeps(rows, *, state):
        return rows, state

    @rc.leafwise
    def inverts(leaf):
        return leaf @ leaf

    full = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    x, turned = cut(full, mesh, [Shard(1)]), cut(full, mesh, [Shard(0)])
    grown = cut(full, mesh, [Shard(1)]).requires_grad_()
    cases = {
        "sort": lambda: sorts().update(x, ()),
        "rows with a state": lambda: keeps().init(x),
        "matrix": lambda: inverts().update(x, ()),
        "muon": lambda: rc.scale_by_muon().update(x, rc.scale_by_muon().init(x)),
        "turned": lambda: rc.sign().update(turned, (), params=x),
        "plain": lambda: rc.sign().update(full, (), params=x),
        "grad": lambda: torch.enable_grad()(lambda: rc.sign().update(grown, ()))(),
        "compile": lambda: rc.sign().compile().update(x, ()),
    }
    said = {
        "sort": "would gather",
        "rows with a state": "keeps something for each row",
        "matrix": "would gather",
        "muon": "would gather",
        "turned": "must be placed as its parameter",
        "plain": "must be a DTensor",
        "grad": "no_grad",
        "compile": "compile",
    }
    faults = []
    for name, case in cases.items():
        try:
            case()
            faults.append(f"{name}: no refusal")
        except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            if said[name] not in str(error):
                faults.append(f"{name}: {error}")
    return faults


def seeded_apart(world):
    """What differs between ranks is refused on all of them, where it would lead them apart."""
    faults, last = [], int(dist.get_rank() == world - 1)
    full = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    for mesh in meshes(world):
        for first in (0, 1):
            x = cut(full, mesh, [Shard(first), *[Shard(1)] * (mesh.ndim - 1)])
            p = x.detach().clone().requires_grad_()
            p.grad = x
            optimizer = rc.optim.TopQGradientOptimizer(
                [p], q=0.5, dq=0.3, generator=torch.Generator().manual_seed(last), lr=1.0
            )
            top = rc.top_k(3 + last, param_ndim=None)
            ball = rc.l1_ball(0.1 + last * 1e-9, param_ndim=None)
            cases = {
                "generator": optimizer.step,
                "k": lambda x=x, tx=top: tx.update(x, ()),
                "radius": lambda x=x, tx=ball: tx.step(x, x * 0, ()),
            }
            alike = "hyperparameters must be alike on all ranks"
            said = {"generator": "`generator`", "k": alike, "radius": alike}
            for name, case in cases.items():
                try:
                    case()
                    faults.append(f"{name} on {mesh}: no refusal")
                except ValueError as error:
                    faults += [] if said[name] in str(error) else [str(error)]
    return faults


def traffic(world):
    """How many collectives, whatever the number of tensors; nothing is gathered."""
    mesh, faults = meshes(world)[0], []
    full = [torch.randn(5, 300 + i, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    x = [cut(g, mesh, [Shard(1)]) for g in full]
    y = [cut(g, mesh, [Shard(0)]) for g in full]
    short = [cut(g[:, : 30 + i], mesh, [Shard(1)]) for i, g in enumerate(full)]
    rules = [
        ("whole rows", rc.chain(rc.top_q(0.9), rc.normalize(), rc.l1_ball(1.0)), y, 0),
        ("elements", rc.chain(rc.sign(), rc.ema(0.9), rc.add_noise(std=0.1)), x, 0),
        ("selection", rc.top_q(0.9), x, 4),
        ("selection of whole tensors", rc.top_q(0.9, param_ndim=None), y, 4),
        ("selection of short rows too", rc.top_q(0.9), [*x, *short], 4),
        ("selection of short rows alone", rc.top_q(0.9), short, 2),
        ("norm", rc.normalize(), x, 1),
        ("mean", rc.centralize(), x, 1),
        ("global norm", rc.clip_by_global_norm(1.0), x, 1),
        ("l2_ball", rc.l2_ball(1.0), x, 3),
        ("l1_ball", rc.l1_ball(1.0), x, 14),
        ("simplex", rc.simplex(), x, 14),
        ("statistic", rc.record("s", rc.sparsity), x, 1),
    ]
    for name, tx, leaves, most in rules:
        state = tx.init(leaves)
        SENT.clear()
        with CommDebugMode() as seen:
            if any(link.phase != "gradient" for link in tx.links):
                tx.step(leaves, [leaf * 0 for leaf in leaves], state)
            else:
                tx.update(leaves, state)
        others = {k: n for k, n in seen.get_comm_counts().items() if "all_reduce" not in str(k)}
        if not min(most, 1) <= SENT["collectives"] <= most or others:
            faults.append(f"{name}: {dict(SENT)}, {others}")
    SENT.clear()
    rc.top_q(0.9, param_ndim=None).update(x, ())
    if not 0 < SENT["bytes"] <= 5 * len(x) * 1024:
        faults.append(f"bytes of a selection: {SENT['bytes']}")
    return faults


def cost(world):
    """Ranks with equal shards send what benchmarks/scale.py counts, and get what it computes."""
    mesh, faults = meshes(world)[0], []
    some = scale.Shards((5000,)), scale.Shards((10, 100), 0, -1), scale.Shards((7, 300), 1, -1)
    for link in scale.LINKS:
        for shards in some:
            SIZES.clear()
            scale.use(link, shards, mesh, tensors=3)
            sent = list(SIZES)
            (shared,) = scale.use(link, shards, mesh)
            with scale.alike() as counted_there:
                (alone,) = scale.use(link, shards, mesh)
            if sent != [3 * size for size in counted_there]:
                faults.append(f"{link} of {shards}: {sent}, {counted_there} for one")
            if not torch.equal(shared.to_local(), alone.to_local()):
                faults.append(f"{link} of {shards}: other numbers")
    return faults


# ------------------------------------------------------------------ the hook of DDP


def hook(world, folder):
    """Each rank's gradients through a pipeline, and their mean: as by hand, and little travels."""
    rank, faults, sent = dist.get_rank(), [], []
    gather = dist.all_gather_single

    def watched(out, x, *args, **kwargs):
        sent.append(x.numel() * x.element_size())
        return gather(out, x, *args, **kwargs)

    def loss(made, which, step):
        data = torch.randn(8, 60, generator=torch.Generator().manual_seed(10 * step + which))
        return (made(data.double()) ** 2).mean()

    def large():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(60, 90), torch.nn.Tanh(), torch.nn.Linear(90, 70)]
        return torch.nn.Sequential(*layers, torch.nn.Linear(70, 1)).double()

    def pipeline():
        return rc.chain(rc.ema(0.5), rc.error_feedback(rc.top_q(0.9, 0.05, seed=1)))

    def wrapped(made, state):
        model = DistributedDataParallel(made, bucket_cap_mb=0.02)
        model.register_comm_hook(state, pipeline_hook)
        return model

    dist.all_gather_single = watched
    made, alone = large(), large()
    state = PipelineState(pipeline(), made.named_parameters())
    model = wrapped(made, state)
    tx, states = pipeline(), {}
    for step in range(5):
        if step == 3:  # from a checkpoint, in a new model
            torch.save([made.state_dict(), state.state_dict()], f"{folder}/hook.{rank}")
            kept = torch.load(f"{folder}/hook.{rank}", weights_only=True)
            made = large()
            made.load_state_dict(kept[0])
            state = PipelineState(pipeline(), made.named_parameters())
            state.load_state_dict(kept[1])
            model = wrapped(made, state)
        sent.clear()
        model.zero_grad()
        loss(model, rank, step).backward()
        total = [torch.zeros_like(p) for p in alone.parameters()]
        for which in range(world):
            grads = torch.autograd.grad(loss(alone, which, step), list(alone.parameters()))
            new, states[which] = tx.update(grads, states.get(which) or tx.init(grads))
            total = [a + b for a, b in zip(total, new, strict=True)]
        with torch.no_grad():
            for p, q, g in zip(made.parameters(), alone.parameters(), total, strict=True):
                if not torch.equal(p.grad, g / world):
                    faults.append(
                        f"step {step}, {tuple(p.shape)}: {(p.grad - g / world).abs().max()}"
                    )
                p -= 0.1 * p.grad
                q -= 0.1 * g / world
        count = sum(p.numel() for p in made.parameters())
        if not 0 < sum(sent) < 0.25 * 8 * count or (step == 1 and len(sent) < 2):
            faults.append(f"step {step}: {sent} bytes of {8 * count}")
    for kept, gathers in ((1.0, True), (1.5, False)):  # a sum sends each twice, and no places
        sent.clear()
        state = PipelineState(rc.top_q(1 - kept / world, param_ndim=None), made.named_parameters())
        model = wrapped(made, state)
        loss(model, rank, 0).backward()
        if bool(sent) != gathers:
            faults.append(f"of {world} ranks {kept / world} of the gradients: {sent}")
    dist.all_gather_single = gather
    model = wrapped(made, PipelineState(rc.sign(), made.named_parameters()))  # keeps nearly all
    loss(model, rank, 0).backward()
    if not all((p.grad * world == (p.grad * world).round()).all() for p in made.parameters()):
        faults.append("signs")
    for tx in (rc.clip_by_global_norm(1.0), rc.masked(rc.top_q(0.9, param_ndim="tree"), [True])):
        try:
            PipelineState(tx, made.named_parameters())
            faults.append(f"no refusal of {tx}")
        except ValueError as error:
            faults += [] if "each parameter alone" in str(error) else [str(error)]
    return faults


def replicas(world):
    """Under DDP all ranks draw alike, whatever the seed of each; torch's own generator may not."""
    rank, faults = dist.get_rank(), []

    def drawn(generator):
        options = {"q": 0.5, "dq": 0.3, "param_ndim": None, "lr": 0.1}
        return lambda ps: rc.optim.TopQGradientOptimizer(ps, generator=generator, **options)

    links = rc.top_q(0.5, 0.3, param_ndim=None), rc.add_noise(eta=0.1), rc.random_k(3)
    makers = {
        "links": lambda ps: ChainedParamTransformingOptimizer(*links, params=ps, lr=0.1),
        "one seed": drawn(torch.Generator().manual_seed(3)),
    }
    for name, make in makers.items():
        made = net()
        start, model = of(made), DistributedDataParallel(made)
        torch.manual_seed(rank)
        optimizer, g = make(list(made.parameters())), torch.Generator().manual_seed(rank)
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.randn(8, 6, generator=g)) ** 2).mean().backward()
            optimizer.step()
        low, high = of(made), of(made)
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if not torch.equal(low, high) or torch.equal(low, start):
            faults.append(f"{name}: replicas differ, or nothing moves")
    try:
        drawn(None)(list(net().parameters()))
        faults.append("no refusal")
    except ValueError as error:
        faults += [] if "same seed in each process" in str(error) else [str(error)]
    return faults


def of(made):
    return torch.cat([p.detach().reshape(-1) for p in made.parameters()])


# ------------------------------------------------------------------ FSDP2 and checkpoints


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5), torch.nn.Linear(5, 1)
    )


PIPELINES = {
    "sparse": lambda: (rc.error_feedback(rc.top_q(0.5, param_ndim=None)), rc.clip_by_norm(1.0)),
    "global": lambda: (rc.clip_by_global_norm(0.5), rc.ema(0.9), rc.l1_ball(2.0, param_ndim=None)),
    "noise": lambda: (rc.add_noise(eta=0.01, seed=1), rc.normalize(param_ndim=None)),
    "wrapped": lambda: (
        rc.apply_if_finite(rc.chain(rc.trace(0.5), rc.top_q(0.3)), 2),
        rc.record("norm", rc.global_norm),
    ),
}


def trained(made, optimizer, times):
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))
    for time in times:
        optimizer.zero_grad()
        (made(data) ** 2 + time * made(data)).mean().backward()
        optimizer.step()
    return [p.detach() for p in made.parameters()]


def optimizer_of(made, name):
    return ChainedParamTransformingOptimizer(
        *PIPELINES[name](), params=made.parameters(), InnerOpt=torch.optim.AdamW, lr=0.05
    )


def fsdp(world):
    """FSDP2 with a real backward, five steps; on a 2-D mesh as HSDP."""
    faults = []
    for mesh in meshes(world)[:2]:
        for name in PIPELINES:
            made, alone = net(), net()
            fully_shard(made, mesh=mesh)
            optimizer, other = optimizer_of(made, name), optimizer_of(alone, name)
            pairs = zip(
                trained(made, optimizer, range(5)), trained(alone, other, range(5)), strict=True
            )
            for x, full in pairs:
                off = differs(x, full, SLACK[world > 4])
                faults += [f"{name}: {off}"] if off else []
    return faults


def checkpoint(world, folder):
    """Three steps saved on these ranks; any number of ranks may go on from there."""
    for name in PIPELINES:
        for flat in (False, True):
            options = of_torch.StateDictOptions(flatten_optimizer_state_dict=flat)
            made = net()
            fully_shard(made, mesh=meshes(world)[0])
            optimizer = optimizer_of(made, name)
            trained(made, optimizer, range(3))
            saved = {
                "model": of_torch.get_model_state_dict(made),
                "optimizer": of_torch.get_optimizer_state_dict(made, optimizer, options=options),
            }
            dcp.save(saved, checkpoint_id=f"{folder}/{name} {flat}")
    return []


def resumed(world, folder):
    """From a checkpoint, of another number of ranks: two more steps equal the unbroken run."""
    faults = []
    for name in PIPELINES:
        for flat in (False, True):
            options = of_torch.StateDictOptions(flatten_optimizer_state_dict=flat)
            made, alone = net(), net()
            fully_shard(made, mesh=meshes(world)[0])
            optimizer = optimizer_of(made, name)
            loaded = {
                "model": of_torch.get_model_state_dict(made),
                "optimizer": of_torch.get_optimizer_state_dict(made, optimizer, options=options),
            }
            dcp.load(loaded, checkpoint_id=f"{folder}/{name} {flat}")
            of_torch.set_model_state_dict(made, loaded["model"])
            of_torch.set_optimizer_state_dict(made, optimizer, loaded["optimizer"], options=options)
            found = trained(made, optimizer, [3, 4])
            expected = trained(alone, optimizer_of(alone, name), range(5))
            for x, full in zip(found, expected, strict=True):
                off = differs(x, full, SLACK[world > 4])
                faults += [f"{name}, flat {flat}: {off}"] if off else []
    return faults


def cases(world, folder, long):
    count = 12 if long else 1
    found = {
        "laws of what is exact": partial(laws, "exact", count),
        "laws of sums": partial(laws, "close", count),
        "every link": every_link,
        "homes": homes,
        "drawn alike": drawn_alike,
        "refusals": refusals,
        "seeded apart": seeded_apart,
        "traffic": traffic,
        "cost": cost,
        "hook": partial(hook, folder=folder),
        "replicas": replicas,
        "fsdp": fsdp,
        "checkpoint": partial(checkpoint, folder=f"{folder}/saved") if world == 2 else None,
        "resumed": partial(resumed, folder=f"{folder}/saved"),
    }
    if world == 1:
        return {"resumed": found["resumed"]}
    return {name: case for name, case in found.items() if case is not None}


def main(rank, world, folder, long):
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # torch's, of two reductions in a row
    funcol.all_reduce = counted
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    for name, case in cases(world, folder, long).items():
        try:
            with torch.set_grad_enabled(name in TRAINED):
                result = case(world)
        except BaseException:
            result = traceback.format_exc()
        torch.save(result, f"{folder}/{name} on {world}.{rank}")
        if isinstance(result, str):
            os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "long")
