"""Who does the works: rai_chain, its peers, and the floor."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW

import rai_chain as rc

from .tensors import Shape, normal
from .timing import Candidate, NotAvailableError

Builders = dict[str, Callable[[], Candidate]]  # name -> what makes it: only what is asked for is

OURS, FUSED, COMPILED = "rai_chain", "rai_chain, fused", "rai_chain, compiled"
RAI, RAI_FUSED = "rai-toolbox", "rai-toolbox, fused"
PLAIN, PLAIN_FUSED = "torch optimizer", "torch optimizer, fused"
TORCHOPT, FLOOR, FOREACH = "TorchOpt", "floor", "torch _foreach_mul"
HAND, FOOLBOX, TOPK, CLIP = "by hand", "foolbox", "torch topk", "torch clip_grad_norm_"
OPTIMIZER, BATCHED, TWO = "rai_chain, optimizer", "rai_chain, batched", "rai_chain, two threads"
SCALE, BIAS = 0.5, 0.01


def floor(tensors: Sequence[Tensor], prepare: Callable[[], object] | None = None) -> Candidate:
    """One pass in place over the same tensors: the least that touching them costs."""

    def run() -> None:
        for x in tensors:
            torch.mul(x, 1, out=x)

    return Candidate(run, prepare)


def peer() -> ModuleType:
    try:
        import rai_toolbox.optim
    except ImportError as missing:
        raise NotAvailableError("rai-toolbox is not installed") from missing
    return rai_toolbox.optim


def tried(candidate: Candidate) -> Candidate:
    """A candidate whose first call compiles: where there is no compiler it is not available."""
    try:
        candidate.run()
    except Exception as error:
        raise NotAvailableError(f"{type(error).__name__} when compiling") from error
    return candidate


# ------------------------------------------------------------------ top-q


def top_q_builders(
    shapes: Sequence[Shape],
    *,
    q: float,
    param_ndim: int | None = -1,
    dtype: torch.dtype = torch.float32,
    data: Callable[[Tensor], Tensor] | None = None,
    peers: Sequence[str] = (),
    device: str = "cpu",
) -> Builders:
    """In-place top-q by the optimizers' own method; the gradients are restored before each call."""
    masters = normal(shapes, device=device)
    masters = [(data(x) if data else x).to(dtype) for x in masters]
    params = [torch.empty_like(x, requires_grad=True) for x in masters]
    grads = [x.clone() for x in masters]
    for p, g in zip(params, grads, strict=True):
        p.grad = g

    def restore() -> None:
        for g, master in zip(grads, masters, strict=True):
            g.copy_(master)

    def optimizer(module: Callable[[], ModuleType]) -> Candidate:
        make = module().TopQGradientOptimizer
        tx = make(params, q=q, param_ndim=param_ndim, lr=0.0)
        return Candidate(tx._apply_pre_step_transform_, restore)

    def topk() -> None:
        for g in grads:
            rows = g.view(1, -1) if param_ndim is None else g.flatten(1)
            k = round((1 - q) * rows.shape[1])
            kept = rows.abs().topk(k, dim=1, sorted=False).indices
            rows.copy_(torch.zeros_like(rows).scatter_(1, kept, rows.gather(1, kept)))

    def twice() -> Candidate:
        one = optimizer(lambda: rc.optim)

        def run() -> None:
            torch.set_num_threads(2)
            one.run()
            torch.set_num_threads(1)

        return Candidate(run, restore)

    builders = {
        FLOOR: lambda: floor(grads, restore),
        OURS: lambda: optimizer(lambda: rc.optim),
        RAI: lambda: optimizer(peer),
        TOPK: lambda: Candidate(topk, restore),
        TWO: twice,
    }
    return {name: builders[name] for name in (FLOOR, OURS, *peers)}


def top_q_is_exact(shapes: Sequence[Shape], *, q: float, data: Callable[[Tensor], Tensor]) -> bool:
    """Whether the result is, to the bit, what a stable sort keeps; one row a tensor."""
    for x in normal(shapes):
        rows = data(x)
        kept = rows.abs().sort(dim=1, descending=True, stable=True).indices
        kept = kept[:, : round((1 - q) * rows.shape[1])]
        expected = torch.zeros_like(rows).scatter_(1, kept, rows.gather(1, kept))
        found = rc.top_q(q).update(rows.clone(), (), inplace=True)[0]
        if not torch.equal(found.view(torch.int32), expected.view(torch.int32)):
            return False
    return True


# ------------------------------------------------------------------ the optimizer


FEW_ENOUGH_TO_COMPILE = 500  # tensors
SETTINGS: dict[Any, dict[str, Any]] = {
    "SGD": {"kind": SGD, "lr": 1e-4},
    "SGD with momentum": {"kind": SGD, "lr": 1e-4, "momentum": 0.9},
    "AdamW": {"kind": AdamW, "lr": 1e-6},
}


def optimizer_builders(shapes: Sequence[Shape], *, inner: str) -> Builders:
    """Clamp, scale, bias, and a torch optimizer: the same tensors for all, the moments each one's.

    Gradients need not be restored: transformed again and again they stay ordinary numbers.
    """
    params = [p.requires_grad_() for p in normal(shapes)]
    for p, g in zip(params, normal(shapes, seed=1), strict=True):
        p.grad = g
    return step_builders(params, inner=inner)


def step_builders(params: list[Tensor], *, inner: str) -> Builders:
    """The same on parameters that have gradients."""
    grads = [p.grad for p in params if p.grad is not None]
    settings = dict(SETTINGS[inner])
    kind = settings.pop("kind")

    def chained(module: Callable[[], ModuleType], **options: Any) -> Candidate:
        lib = module()
        clamped = partial(lib.ClampedGradientOptimizer, clamp_min=-1.0, clamp_max=1.0)
        optimizer = lib.ChainedParamTransformingOptimizer(
            clamped,
            params=params,
            InnerOpt=kind,
            grad_scale=SCALE,
            grad_bias=BIAS,
            **settings,
            **options,
        )
        return Candidate(optimizer.step)

    def compiled() -> Candidate:
        if "compile" not in signature(rc.optim.ChainedParamTransformingOptimizer).parameters:
            raise NotAvailableError("compile=True")
        if len(params) > FEW_ENOUGH_TO_COMPILE:
            raise NotAvailableError("takes many minutes to compile")
        if kind is AdamW:
            raise NotAvailableError("compiled for SGD alone")
        candidate = tried(chained(lambda: rc.optim, compile=True))  # the first step is eager
        return tried(candidate)

    def plain(**options: Any) -> Candidate:
        return Candidate(kind(params, **settings, **options).step)

    return {
        FLOOR: lambda: floor(grads),
        PLAIN: plain,
        PLAIN_FUSED: lambda: plain(fused=True),
        OURS: lambda: chained(lambda: rc.optim),
        FUSED: lambda: chained(lambda: rc.optim, fused=True),
        COMPILED: compiled,
        RAI: lambda: chained(peer),
        RAI_FUSED: lambda: chained(peer, fused=True),
        **({} if kind is AdamW else {TORCHOPT: lambda: torchopt_step(params, grads, settings)}),
    }


def group_builders(shapes: Sequence[Shape], *, groups: int, construct: bool) -> Builders:
    """The parameters in so many param groups: making the optimizer, or its step."""
    params = [p.requires_grad_() for p in normal(shapes)]
    for p, g in zip(params, normal(shapes, seed=1), strict=True):
        p.grad = g

    def split() -> list[dict[str, Any]]:
        return [{"params": params[i::groups]} for i in range(min(groups, len(params)))]

    def timed(make: Callable[[], Any]) -> Candidate:
        return Candidate(make if construct else make().step)

    ours = partial(rc.optim.ChainedParamTransformingOptimizer, *_three(), lr=1e-4)
    return {
        FLOOR: lambda: floor([p.grad for p in params if p.grad is not None]),
        PLAIN: lambda: timed(lambda: SGD(split(), lr=1e-4)),
        OURS: lambda: timed(lambda: ours(params=split())),
    }


def clip_builders(shapes: Sequence[Shape]) -> Builders:
    """One factor for all gradients, in place; restored before each call."""
    masters = normal(shapes)
    params = [torch.zeros_like(x, requires_grad=True) for x in masters]
    grads = [x.clone() for x in masters]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    tx = rc.clip_by_global_norm(1.0)
    state = tx.init(grads)

    def restore() -> None:
        torch._foreach_copy_(grads, masters)

    return {
        FLOOR: lambda: floor(grads, restore),
        CLIP: lambda: Candidate(lambda: torch.nn.utils.clip_grad_norm_(params, 1.0), restore),
        OURS: lambda: Candidate(lambda: tx.update(grads, state, inplace=True), restore),
    }


def torchopt_links() -> tuple[Any, ...]:
    """Clamp, scale and bias as TorchOpt writes its own links: it has no clamp and no bias."""
    import torchopt
    from torchopt.base import GradientTransformation
    from torchopt.pytree import tree_map, tree_map_

    def link(function: Callable[[Tensor], Tensor], in_place: Callable[[Tensor], Tensor]) -> Any:
        def update(
            updates: Any, state: Any, *, params: Any = None, inplace: bool = True
        ) -> tuple[Any, Any]:
            updates = tree_map_(in_place, updates) if inplace else tree_map(function, updates)
            return updates, state

        return GradientTransformation(lambda params: (), update)

    return (
        link(lambda g: g.clamp(-1.0, 1.0), lambda g: g.clamp_(-1.0, 1.0)),
        torchopt.transform.scale(SCALE),
        link(lambda g: g.add(BIAS), lambda g: g.add_(BIAS)),
    )


def torchopt_step(params: list[Tensor], grads: list[Tensor], settings: dict[str, Any]) -> Candidate:
    """A step of TorchOpt in place, its default and its fastest way."""
    import torchopt

    tx = torchopt.chain(*torchopt_links(), torchopt.sgd(**settings))
    with torch.no_grad():
        state = tx.init(tuple(params))

    @torch.no_grad()
    def run() -> None:
        nonlocal state
        updates, state = tx.update(tuple(grads), state, params=tuple(params), inplace=True)
        torchopt.apply_updates(tuple(params), updates, inplace=True)

    return Candidate(run)


# ------------------------------------------------------------------ the pure home


def _three() -> tuple[rc.GradientTransformation, ...]:
    return rc.clamp(-1.0, 1.0), rc.scale(SCALE), rc.bias(BIAS)


def pure_builders(shapes: Sequence[Shape], *, links: int = 3) -> Builders:
    """A pure step through so many links of clamp, scale and bias."""
    params = {f"{i:03}": p for i, p in enumerate(normal(shapes))}
    grads = {f"{i:03}": g for i, g in enumerate(normal(shapes, seed=1))}

    def row(three: Sequence[Any]) -> list[Any]:
        return (list(three) * links)[:links]

    def ours(compiled: bool = False) -> Candidate:
        tx = rc.chain(*row(_three()))
        tx = tx.compile() if compiled else tx
        state = tx.init(params)
        candidate = Candidate(lambda: tx.step(params, grads, state)[0])
        return tried(candidate) if compiled else candidate

    def torchopt() -> Candidate:
        import torchopt

        tx = torchopt.chain(*row(torchopt_links()))
        state = tx.init(params)

        def run() -> Any:
            updates, _ = tx.update(grads, state, params=params, inplace=False)
            return torchopt.apply_updates(params, updates, inplace=False)

        return Candidate(run)

    return {
        FLOOR: lambda: floor(list(grads.values())),
        FOREACH: lambda: Candidate(lambda: torch._foreach_mul(list(grads.values()), 1.0)),
        OURS: ours,
        COMPILED: lambda: ours(compiled=True),
        TORCHOPT: torchopt,
    }
