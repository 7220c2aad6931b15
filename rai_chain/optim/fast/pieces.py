"""The inner step taken piece by piece, each while its transformed gradient is still in cache.

An elementwise optimizer does to a piece of a parameter what it does to the whole, so it is handed
views: of the parameter, the gradient and its own state. The bits are those of one whole step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, optim
from torch.optim import Optimizer

from ...engine.chunks import Call, apply_elementwise, flat, pieces_of

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
Group = dict[str, Any]


def step_in_pieces(
    inner: Optimizer, bare_step: Callable[[Any], Any], work: Sequence[tuple[Group, Sequence[Call]]]
) -> None:
    """Transform and step, a piece at a time.

    Args:
        inner: an optimizer of a class in `ELEMENTWISE`.
        bare_step: its step, without hooks.
        work: each param group with the elementwise functions for its gradients.
    """
    shared, state = inner.param_groups, inner.state
    try:
        for group, calls in work:
            own = dict(group)
            inner.param_groups = [own]
            for batch in _batches(group["params"], state):
                if len(batch) == 1 and batch[0].numel() > PIECE and state.get(batch[0]):
                    done = _cut(inner, bare_step, own, calls, batch[0], state[batch[0]])
                    inner.state = state
                    if done:
                        continue
                grads = [p.grad for p in batch]
                apply_elementwise(calls, grads, [True] * len(grads))
                own["params"] = batch
                bare_step(inner)
    finally:
        inner.param_groups, inner.state = shared, state


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


def _cut(
    inner: Optimizer,
    bare_step: Callable[[Any], Any],
    group: Group,
    calls: Sequence[Call],
    param: Tensor,
    state: Group,
) -> bool:
    """Step one large parameter in pieces; False where its tensors do not lie alike in memory."""
    grad: Any = param.grad
    whole = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == param.shape}
    views = [flat(t) for t in (param.detach(), grad, *whole.values())]
    strides = {t.stride() for t in (param, grad, *whole.values())}
    if len(strides) > 1 or any(view is None for view in views):
        return False
    rest = {k: v for k, v in state.items() if k not in whole}
    cut: Any = zip(*(pieces_of(view, PIECE) for view in views if view is not None), strict=True)
    last: Group = {}
    for piece, piece_grad, *pieces in cut:
        piece.grad = piece_grad
        for call in calls:
            call(piece_grad, out=piece_grad)
        last = dict(zip(whole, pieces, strict=True))
        last.update((k, v.clone() if isinstance(v, Tensor) else v) for k, v in rest.items())
        inner.state = defaultdict(dict, {piece: last})
        group["params"] = [piece]
        bare_step(inner)
    for key, value in rest.items():  # counters and the like moved alike for all pieces
        state[key] = value.copy_(last[key]) if isinstance(value, Tensor) else last[key]
    return True
