"""The inner step taken piece by piece, each while its transformed gradient is still in cache.

An elementwise optimizer does to a piece of a parameter what it does to the whole, so a copy of it
is handed views: of the parameter, the gradient and its own state. The bits are those of one whole
step, and the optimizer itself is not touched.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

from ...data.plain import is_plain
from ...data.tree import Leaves
from ...engine.chunks import Call, apply_elementwise, flat, pieces_of
from ...engine.run import elementwise
from ..apart import keep_apart, project
from ..bound import Binding, Bound
from ..states import Group
from ..work import Work
from .layer import bare_step, torchs_step
from .onepass import one_pass

PIECE = 1 << 19  # elements: a gradient, its parameter and a state or two stay in cache
ELEMENTWISE = frozenset(
    {
        optim.ASGD,
        optim.Adadelta,
        optim.Adagrad,
        optim.Adam,
        optim.AdamW,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.RMSprop,
        optim.Rprop,
        optim.SGD,
    }
)
Step = Callable[[Any], Any]


def direct(optimizer: Any, bounds: Sequence[Bound]) -> bool:
    """Take a step whose gradient links are nothing but elementwise functions, where it is one.

    The functions run over all gradients at once, or a piece at a time, each piece stepped while it
    is in cache, where the inner optimizer allows that. Parameter links follow as ever.
    """
    inner = optimizer.inner_opt
    work: list[tuple[Any, Leaves]] = []
    ordinary = True
    if optimizer._compile or isinstance(inner, Binding):
        return False
    for bound in bounds:
        if bound.calls is None:
            return False
    for bound in bounds:
        grads = [p.grad for p in bound.params]
        ordinary &= bound.check_grads(grads) and bound.ordinary
        if not is_plain([*bound.params, *grads]):
            return False
        work.append((bound, grads))
    keep_apart(work)
    late = [Work(bound, grads) for bound, grads in work if bound.places["parameter"]]
    for one in late:
        one.prepare(optimizer.state)
    small = sum([bound.numel for bound in bounds]) <= PIECE
    groups = [bound for bound, _ in work]
    stepped = ordinary and (one_pass(inner, groups) or (not small and step_in_pieces(inner, work)))
    if not stepped:
        for bound, grads in work:
            if bound.calls:
                elementwise(bound.calls, grads, [True] * len(grads), bound.spec)
        bare_step(inner)()
    if late:
        project(late)
    return True


def step_in_pieces(inner: Optimizer, work: Sequence[tuple[Any, Any]]) -> bool:
    """Transform and step, a piece at a time, where that is possible and pays; whether it was."""
    step = torchs_step(inner) if type(inner) in ELEMENTWISE else None
    if step is None or not all(bound.safe and bound.on_cpu for bound, _ in work):
        return False
    for bound, _ in work:
        _group(inner, step, bound)
    return True


def _group(inner: Optimizer, step: Step, bound: Any) -> None:
    calls = bound.calls
    for batch in _batches(bound.params, inner.state):
        large = len(batch) == 1 and batch[0].numel() > PIECE and inner.state.get(batch[0])
        if large and _cut(inner, step, bound.group, calls, batch[0]):
            continue
        grads = [p.grad for p in batch]
        apply_elementwise(calls, grads, [True] * len(grads))
        step(_copy(inner, bound.group, batch, inner.state))


def _copy(inner: Optimizer, group: Group, params: list[Tensor], state: Any) -> Optimizer:
    """An optimizer like the inner one, for these tensors alone."""
    copy: Optimizer = object.__new__(type(inner))
    copy.__dict__.update(inner.__dict__)
    copy.param_groups, copy.state = [{**group, "params": params}], state
    return copy


def _batches(params: Sequence[Tensor], state: Any) -> Iterator[list[Tensor]]:
    """Runs of parameters with gradients, of at most PIECE elements together or one alone."""
    batch: list[Tensor] = []
    total = 0
    for p in params:
        if p.grad is None:
            continue
        if batch and total + p.numel() > PIECE:
            yield batch
            batch, total = [], 0
        batch.append(p)
        total += p.numel()
    if batch:
        yield batch


def _cut(inner: Optimizer, step: Step, group: Group, calls: Sequence[Call], param: Tensor) -> bool:
    """Step one large parameter in pieces; False where its tensors do not lie alike in memory."""
    grad: Any = param.grad
    state = {k: v for k, v in inner.state[param].items() if not isinstance(v, dict)}
    whole = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == param.shape}
    rest = {k: v for k, v in state.items() if k not in whole}
    views = [flat(t) for t in (param.detach(), grad, *whole.values())]
    strides = {t.stride() for t in (param, grad, *whole.values())}
    if len(strides) > 1 or any(x is None for x in (*views, *rest.values())):
        return False
    cut: Any = zip(*(pieces_of(view, PIECE) for view in views if view is not None), strict=True)
    last: Group = {}
    for piece, piece_grad, *pieces in cut:
        piece.grad = piece_grad
        for call in calls:
            call(piece_grad, out=piece_grad)
        last = dict(zip(whole, pieces, strict=True))
        last.update((k, v.clone() if isinstance(v, Tensor) else v) for k, v in rest.items())
        step(_copy(inner, group, [piece], defaultdict(dict, {piece: last})))
    for key, value in rest.items():  # counters and the like moved alike for all pieces
        inner.state[param][key] = value.copy_(last[key]) if isinstance(value, Tensor) else last[key]
    return True
