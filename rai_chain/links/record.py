"""Statistics of what passes through a pipeline, kept in its state."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.checks import check_leaves
from ..data.hyper import Range, placed
from ..data.messages import check_function, told
from ..data.tree import Leaves, Spec, Tree, flatten, unflatten
from ..engine.run import Run, State
from ..kernels.norms import joint_norm


class Record(Wrapper):
    """See `record`."""

    label = "record"
    once = frozenset({"record"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        device = next((leaf.device for leaf in leaves if leaf is not None), "cpu")
        size = (self.options["capacity"],)
        empty = torch.full(size, math.nan, dtype=torch.float32, device=device)
        return {"record": {self.options["name"]: empty}}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        name, capacity = self.options["name"], self.options["capacity"]
        value = self.options["fn"](unflatten(list(leaves), run.spec))
        shaped = isinstance(value, Tensor) and (value.ndim > 0 or value.is_complex())
        if shaped or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"`fn` must return one number, a 0-dim tensor  Got: {told(value)}")
        history = state["record"][name]
        value = placed(value, history.device, history.dtype)
        here = torch.arange(capacity, device=history.device) == state["step"] % capacity
        new = torch.where(here, value.detach(), history)
        return list(leaves), {"inner": state["inner"], "record": {name: new}}


def record(name: str, fn: Callable[[Tree], Any], capacity: int = 1000) -> Record:
    """Keep a statistic of what passes, one number a step, in the state; see `records`.

    Args:
        name: of the statistic.
        fn: ``updates -> 0-dim tensor``, such as `sparsity` or `global_norm`.
        capacity: how many steps are kept, the last ones, >= 1.

    Raises:
        ValueError: capacity < 1.

    Example:
        >>> import torch
        >>> from rai_chain import chain, top_q
        >>> tx = chain(record("before", global_norm), top_q(0.5), record("after", global_norm))
        >>> g = torch.tensor([[3.0, 4.0]])
        >>> _, state = tx.update(g, tx.init(g))
        >>> records(state)
        {'before': tensor([5.]), 'after': tensor([4.])}

    Source: this library.
    """
    Range(1, static=True, whole=True).check("capacity", capacity)
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string  Got: {name!r}")
    check_function("fn", fn, "updates")
    made: Record = Record({}, name=name, fn=fn, capacity=capacity)
    return made


def monitor(
    measures: Mapping[str, Callable[[Tree], Any]], capacity: int = 1
) -> GradientTransformation:
    """Keep several statistics of what passes: a chain of `record`.

    Args:
        measures: name -> function, as in `record`.
        capacity: how many steps of each are kept, the last ones, >= 1.

    Raises:
        TypeError: `measures` is no dict of functions.
        ValueError: no measure, or capacity < 1.

    Example:
        >>> import torch
        >>> tx = monitor({"norm": global_norm, "sparsity": sparsity})
        >>> _, state = tx.update(torch.tensor([0.0, 4.0]), tx.init(torch.zeros(2)))
        >>> records(state)
        {'norm': tensor([4.]), 'sparsity': tensor([0.5000])}

    Source: the function of the same name in optax, whose `snapshot` is `record` with a capacity
    of 1.
    """
    if not isinstance(measures, Mapping):
        raise TypeError(f"`measures` must be a dict name -> function  Got: {told(measures)}")
    if not measures:
        raise ValueError(f"`measures` must have one function at least  Got: {measures}")
    return chain(*(record(name, fn, capacity) for name, fn in measures.items()))


def records(state: State) -> dict[str, Tensor]:
    """The statistics in a state of a pipeline, as a plain dict that is ready to plot.

    Args:
        state: of any pipeline with `record` in it, a param group's, or an optimizer.

    Returns:
        name -> values, (steps,) float32, oldest first.

    Raises:
        ValueError: two records have one name.

    Example:
        >>> import torch
        >>> tx = record("sparsity", sparsity)
        >>> records(tx.update(torch.tensor([0.0, 1.0]), tx.init(torch.zeros(2)))[1])
        {'sparsity': tensor([0.5000])}

    Source: this library.
    """
    if isinstance(state, Optimizer):
        return records({"param_groups": state.param_groups})
    if isinstance(state, dict) and isinstance(state.get("record"), dict) and "step" in state:
        ((name, values),) = state["record"].items()
        step = int(state["step"])
        return {name: values[:step] if step <= len(values) else values.roll(-(step % len(values)))}
    parts = state.values() if isinstance(state, dict) else state
    found: dict[str, Tensor] = {}
    for part in parts if isinstance(state, (dict, tuple, list)) else ():
        for name, values in records(part).items():
            if name in found:
                raise ValueError(f"`name` must be one record's only  Got: {name!r} twice")
            found[name] = values
    return found


def _tensors(tree: Tree) -> list[Tensor]:
    leaves, spec = flatten(tree)
    check_leaves(leaves, spec, "tree")
    return [leaf for leaf in leaves if leaf is not None]


def global_norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all elements of a tree, 0-dim float32 or float64.

    Args:
        tree: tensors of any shape and floating dtype; None is left out.

    Example:
        >>> import torch
        >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        tensor(5.)

    Source: the function of the same name in optax.
    """
    leaves = _tensors(tree)
    if not leaves:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    norm = joint_norm([leaf.reshape(1, -1) for leaf in leaves]).reshape(())
    double = any(leaf.dtype == torch.float64 for leaf in leaves)
    return norm.to(torch.float64 if double else torch.float32)


def sparsity(tree: Tree) -> Tensor:
    """The fraction of zeros among all elements of a tree, 0-dim float32; 0 where it has none.

    Args:
        tree: tensors of any shape and floating dtype; None is left out.

    Example:
        >>> import torch
        >>> sparsity([torch.tensor([0.0, 1.0]), torch.zeros(2)])
        tensor(0.7500)

    Source: its definition.
    """
    leaves = _tensors(tree)
    if not leaves:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    zero = torch.stack([(leaf == 0).sum() for leaf in leaves]).sum()
    fraction: Tensor = zero.float() / max(1, sum(leaf.numel() for leaf in leaves))
    return fraction
