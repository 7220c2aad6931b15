"""What is written in a step, in memory that nothing else of the step reads."""

from collections.abc import Sequence

from ..data.memory import are_apart, separated
from ..data.tree import Leaves, leaf_names
from ..engine.sharded import has_shards
from .bound import Bound
from .work import Work


def keep_apart(work: Sequence[tuple[Bound, Leaves]]) -> None:
    """Give each gradient memory of its own, where it shares an element with another tensor.

    Args:
        work: each group and its gradients, which may be replaced.
    """
    if len(work) == 1:
        ((bound, own),) = work
        if are_apart(own, bound.params):
            return
    for bound, own in work:
        if has_shards(bound.params, own):
            _place(bound, own)
    params = [p for bound, _ in work for p in bound.params]
    grads = [g for _, own in work for g in own]
    apart = separated(grads, params)
    if apart is grads:
        return
    places = [(own, i) for _, own in work for i in range(len(own))]
    for p, grad, new, (own, i) in zip(params, grads, apart, places, strict=True):
        if new is not grad:
            own[i] = p.grad = new


def _place(bound: Bound, grads: Leaves) -> None:
    """Cut gradients that are DTensors as their parameters are."""
    from ..engine.sharded.leaves import settled

    for i, (p, name) in enumerate(zip(bound.params, leaf_names(bound.spec), strict=True)):
        if (new := settled(grads[i], p, f"grads{name}")) is not grads[i]:
            grads[i] = p.grad = new


def project(work: Sequence[Work]) -> None:
    """Put every parameter through the parameter links, in place."""
    work = [one for one in work if one.bound.places["parameter"]]
    if not work:
        return
    params = [p for one in work for p in one.bound.params]
    apart = separated(params)
    for one in work:
        end = len(one.bound.params)
        one.through("parameter", apart[:end], one.bound.params)
        apart = apart[end:]
