"""A torch optimizer whose update is a link that steps by itself."""

import copyreg
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.link import is_schedule
from ..core.pipeline import Link
from ..data.tree import Leaves, flatten
from ..engine.run import Run, State
from .adapter import own_attributes
from .slots import STATES, STEP, Group


class StepOptimizer(Optimizer):
    """A torch optimizer whose update is a link that steps by itself.

    Args:
        params: parameters, or dicts that define param groups.
        link: a link of the phase "step"; its hyperparameters are param-group keys.
        keys: hyperparameter -> param-group key; None for the names of all but schedules.
        defaults: key -> default value; None for the link's values.

    Raises:
        TypeError: `link` does not step.
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> from rai_chain import frank_wolfe_step
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = StepOptimizer([x], frank_wolfe_step())
        >>> (torch.tensor([2.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 2., -3.], requires_grad=True)

    Source: the phase "step" of this library's design.
    """

    def __init__(
        self,
        params: Any,
        link: Link,
        keys: dict[str, str] | None = None,
        defaults: Group | None = None,
    ) -> None:
        if not isinstance(link, Link) or link.phase != "step":
            raise TypeError(f"`link` must be a link that steps  Got: {link!r}")
        if keys is None:
            keys = {name: name for name, value in link.values.items() if not is_schedule(value)}
        if defaults is None:
            defaults = {key: link.values[name] for name, key in keys.items()}
        self._link, self._keys = link, keys
        super().__init__(params, defaults)
        for group in self.param_groups:
            self.check_group(group)

    @property
    def hyperparameters(self) -> list[str]:
        """The param-group keys of the link's hyperparameters."""
        return [*self._keys.values()]

    def check_group(self, group: Group) -> None:
        """Refuse a param group whose values do not fit."""
        self._link.check_values(self._values(group))

    def _values(self, group: Group) -> Group:
        return {**self._link.values, **{name: group[key] for name, key in self._keys.items()}}

    def step(self, closure: Any = None) -> Any:
        """Step every parameter that has a gradient.

        Args:
            closure: evaluates the model and returns the loss.

        Returns:
            The loss of `closure`, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self.check_group(group)
            new = [one for group in self.param_groups for one in self._advance(group)]
            for group, params, values, state in new:
                for p, value in zip(params, values, strict=True):
                    if value is not None and value is not p:
                        p.copy_(value)
                self._save(group, params, state)
        return loss

    def _trees(self, group: Group) -> Iterator[tuple[list[Tensor], State]]:
        """What the link steps at once, with its state: a group, as in the pure home."""
        yield group["params"], group.get(STATES, {}).get(STEP)

    def _save(self, group: Group, params: list[Tensor], state: State) -> None:
        if state:
            group[STATES] = {**group.get(STATES, {}), STEP: state}

    def _advance(self, group: Group) -> Iterator[tuple[Group, list[Tensor], Leaves, State]]:
        """The new parameters and states of a group; nothing is written yet."""
        for params, state in self._trees(group):
            grads, values = [p.grad for p in params], self._values(group)
            if all(grad is None for grad in grads):
                continue
            run = Run(flatten(grads)[1], [*params], group.get("param_ndim", -1))
            run.writable = [False] * len(params)
            state = state or self._link.start([*params], run, values)
            if any(map(is_schedule, values.values())):
                values = self._link.resolve(values, state)
            new, state = self._link.apply([*grads], state, run, values)
            yield group, params, new, state

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self),), own_attributes(self)  # type: ignore[attr-defined]
