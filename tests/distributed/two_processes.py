"""Cases for two gloo processes, each started once: `python two_processes.py RANK FOLDER`.

Each case has a process group of its own, so that one that fails leaves the next ones alone. What
a case returns, or its traceback, is in `FOLDER/<case>.<rank>`.
"""

import datetime
import os
import sys
import traceback
import warnings
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer

Chain = ChainedParamTransformingOptimizer
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "links")]
import test_laws as laws  # noqa: E402


def around_sgd(make):
    return lambda params: Chain(make(), params=params, lr=0.1)


def alone(make):
    return lambda params: Chain(make(), params=params)


MAKERS = {
    "ema": around_sgd(lambda: rc.ema(0.9)),
    "trace": around_sgd(lambda: rc.trace(0.5)),
    "adam": alone(lambda: rc.adam(0.1)),
    "lookahead": alone(lambda: rc.lookahead(rc.adam(0.1), 2)),
    "accumulate": around_sgd(lambda: rc.accumulate(rc.ema(0.9), 2)),
    "masked": around_sgd(lambda: rc.masked(rc.ema(0.9), matrices)),
    "error_feedback": around_sgd(lambda: rc.error_feedback(rc.clamp(-0.5, 0.5))),
    "chain": around_sgd(lambda: rc.chain(rc.ema(0.9), rc.clamp(-1.0, 1.0), rc.trace(0.5))),
    "scheduled": around_sgd(lambda: rc.chain(rc.ema(0.9), rc.scale(lambda step: 1.0 / (1 + step)))),
}
# What asks for more than gradients; what makes updates to add, or steps itself; what is refused
# where ranks share tensors; what ZeRO does not carry, as it writes numbers over what is scheduled,
# and what is kept once is that of rank 0.
ELSEWHERE = {"differentially_private_aggregate", "sam"}
ALONE = {"descend_within", "prodigy", "schedule_free"}
ALONE |= {"frank_wolfe_step", "frank_wolfe_step, constant"}
REFUSED = {"scale_by_factored_rms", "scale_by_muon"}
LOST = {"scheduled", "prodigy"}


def keeps(name):
    """Whether a link has tensors in its state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = laws.make(name).init([torch.ones(5, 3), torch.ones(5)])
    return any(isinstance(x, torch.Tensor) for x in torch.utils._pytree.tree_leaves(state))


@cache
def every():
    """The makers above, and one for each exported link and wrapper that keeps something."""
    names = [n for n in laws.NAMES if not n.endswith(", tree") and n not in ELSEWHERE and keeps(n)]
    found = {n: (alone if n in ALONE else around_sgd)(partial(laws.make, n)) for n in names}
    return {**found, **MAKERS}


def matrices(tree):
    return torch.utils._pytree.tree_map(lambda leaf: leaf.ndim == 2, tree)


def values(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def give(params, time):
    """The same gradients on every rank; a sharded parameter gets its part."""
    for i, p in enumerate(params):
        grad = values(p.shape, 100 * time + i) if time is not None else torch.zeros(p.shape)
        sharded = hasattr(p, "device_mesh")
        p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if sharded else grad


def train(optimizer, params, times):
    for time in times:
        give(params, time)
        optimizer.step()


def whole(params):
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in params]


def model(sharded=True, start=None):
    """Two matrices and their biases, of a size that two ranks do not share evenly."""
    made = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(values(p.shape, 7 + i) if start is None else start[i])
    if sharded:
        fully_shard(made, mesh=init_device_mesh("cpu", (2,)))
    return made


def expected(make, last):
    """The run of one process, never interrupted."""
    plain = model(sharded=False)
    params = list(plain.parameters())
    train(make(params), params, [0, 1, 2, *last])
    return whole(params)


# ------------------------------------------------------------------ ZeRO


def zero(name, folder):
    """Three steps, consolidate, load into another one, and two steps with zero gradients."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns, which a test forbids

    make = every()[name]

    def sharded(params):
        return ZeroRedundancyOptimizer(params, optimizer_class=lambda params, **_: make(params))

    def parameters():
        return [values((3,), i).requires_grad_() for i in range(2)]

    params = parameters()
    optimizer = sharded(params)
    train(optimizer, params, [0, 1, 2])
    optimizer.consolidate_state_dict(to=0)
    state = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(state, src=0)
    copies = [p.detach().clone().requires_grad_() for p in params]
    resumed = sharded(copies)
    resumed.load_state_dict(state[0])
    train(resumed, copies, [None, None])
    plain = parameters()
    alone = [make([p]) for p in plain]  # each rank's optimizer has its own parameters only
    for time in [0, 1, 2, None, None]:
        give(plain, time)
        for one in alone:
            one.step()
    return whole(copies), whole(plain)


# ------------------------------------------------------------------ distributed checkpoints


def checkpoint(name, kind, folder):
    """Three steps, save, load into another optimizer, and two more steps."""
    make = every()[name]
    options = StateDictOptions(
        flatten_optimizer_state_dict=kind == "flat", full_state_dict=kind == "full"
    )
    first = model()
    optimizer = make(list(first.parameters()))
    train(optimizer, list(first.parameters()), [0, 1, 2])
    saved = get_optimizer_state_dict(first, optimizer, options=options)
    second = model(start=whole(first.parameters()))
    resumed = make(list(second.parameters()))
    if kind != "full":
        dcp.save({"optimizer": saved}, checkpoint_id=folder)
        loaded = {"optimizer": get_optimizer_state_dict(second, resumed, options=options)}
        dcp.load(loaded, checkpoint_id=folder)
        saved = loaded["optimizer"]
    set_optimizer_state_dict(second, resumed, saved, options=options)
    train(resumed, list(second.parameters()), [3, 4])
    return whole(second.parameters()), expected(make, [3, 4])


def cases():
    """What is saved nested, for all; flat and full, for what is put together in different ways."""
    found = {f"zero {n}": partial(zero, n) for n in every() if n not in LOST}
    found |= {f"nested {n}": partial(checkpoint, n, "nested") for n in every()}
    kinds = ("flat", "full")
    return found | {f"{k} {n}": partial(checkpoint, n, k) for k in kinds for n in MAKERS}


def main(rank, folder):
    """Run every case; one that fails on one rank fails on the other after the timeout."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    warnings.simplefilter("ignore")
    for number, (name, case) in enumerate(cases().items()):
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store{number}",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=3),
        )
        try:
            result = case(f"{folder}/saved{number}")
        except BaseException:
            result = traceback.format_exc()
        torch.save(result, f"{folder}/{name}.{rank}")
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
