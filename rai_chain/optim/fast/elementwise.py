"""A step whose gradient links are nothing but elementwise functions, without what others need."""

from collections.abc import Sequence
from typing import Any

from ...data.plain import is_plain
from ...data.tree import Leaves
from ...engine.run import elementwise
from ..apart import keep_apart, project
from ..bound import Binding, Bound
from ..work import Work
from .layer import bare_step
from .onepass import one_pass


def direct(optimizer: Any, bounds: Sequence[Bound]) -> bool:
    """Take a step whose gradient links are nothing but elementwise functions, where it is one.

    One native pass transforms and steps, where it can; else the functions run over all gradients
    at once, and the inner optimizer steps. Parameter links follow as ever.
    """
    inner = optimizer.inner_opt
    work: list[tuple[Bound, Leaves]] = []
    ordinary = True
    if optimizer._compile or isinstance(inner, Binding) or any([b.calls is None for b in bounds]):
        return False
    for bound in bounds:
        grads: Leaves = [p.grad for p in bound.params]
        ordinary &= bound.check_grads(grads) and bound.ordinary
        if not is_plain([*bound.params, *grads]):
            return False
        work.append((bound, grads))
    keep_apart(work)
    late = [Work(bound, grads) for bound, grads in work if bound.places["parameter"]]
    for one in late:
        one.prepare(optimizer.state)
    if not (ordinary and one_pass(inner, bounds)):
        for bound, grads in work:
            if bound.calls:
                elementwise(bound.calls, grads, [True] * len(grads), bound.spec)
        bare_step(inner)()
    if late:
        project(late)
    return True
