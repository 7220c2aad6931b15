"""A torch optimizer whose update is a link that steps by itself."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import Optimizer

from ..core.link import Link
from ..data.memory import separated
from ..data.messages import told
from .bound import Binding, Bound
from .checkpoint import load, reduced
from .evaluation import Evaluation
from .layout import Pipeline
from .params import check_closure, groups_of
from .states import Group
from .work import Work, again_of


class StepOptimizer(Evaluation, Binding, Optimizer):
    """A torch optimizer whose update is a link that steps by itself.

    Args:
        params: parameters, or dicts that define param groups.
        link: a link of the phase "step"; its hyperparameters are param-group keys.
        keys: hyperparameter -> param-group key; None for the names of all.
        name: of the link, under which its state is kept.

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

    _given: Mapping[int, Group] = MappingProxyType({})  # what an optimizer around kept for links

    def __init__(
        self,
        params: Any,
        link: Link,
        keys: dict[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(link, Link) or link.phase != "step":
            raise TypeError(f"`link` must be a link that steps  Got: {told(link)}")
        keys = {n: n for n in link.values} if keys is None else keys
        if not isinstance(keys, dict) or not keys.keys() <= link.values.keys():
            raise TypeError(
                f"`keys` must be a dict hyperparameter -> key, of {', '.join(link.values)}  "
                f"Got: {told(keys)}"
            )
        params = groups_of(params)
        self._pipeline, self._bounds = Pipeline(label=type(self).__name__), {}
        self._pipeline.add(link, name or link.names[0], keys)
        self._pipeline.aliases |= {f"{name}.{n}": key for n, key in keys.items() if name}
        super().__init__(params, {key: link.values[n] for n, key in keys.items()})
        self._bind()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every parameter that has a gradient.

        Args:
            closure: evaluates the model and returns the loss.

        Returns:
            The loss of `closure`, or None.
        """
        check_closure(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given, self._given = self._given, {}
        work = [Work(bound, [p.grad for p in bound.params]) for bound in self._bind()]
        for one in work:
            one.bound.check_grads(one.leaves)
            one.prepare(self.state)
            if id(one.bound.group) in given:
                one.extra = given[id(one.bound.group)]
            else:
                one.ask(loss, again_of(closure, self.param_groups), self._pipeline)
        for one in work if len(work) > 1 else ():
            one.leaves = separated(one.leaves, [p for other in work for p in other.bound.params])
        for one in work:
            one.move()
        for one in work:
            one.commit(self.state)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group; what it does not give it takes from `defaults`."""
        if self._bounds:
            self._read_new(param_group)
            self._bounds[id(param_group)] = Bound(self._pipeline, param_group)
        super().add_param_group(param_group)
        if self._bounds:
            self._bind()

    def state_dict(self) -> dict[str, Any]:
        """The state, as torch has it."""
        self._before_saving()
        return super().state_dict()

    def load_alone(self, state_dict: Group) -> None:
        """Load as torch does."""
        Optimizer.load_state_dict(self, state_dict)

    def load_state_dict(self, state_dict: Group) -> None:
        """Load what `state_dict` returned; `ValueError` where it does not fit."""
        load([self], self.load_alone, state_dict)

    def __setstate__(self, state: Group) -> None:
        schedules = state.pop("_kept_schedules", None)
        super().__setstate__(state)
        if schedules is not None:
            self._bounds = {}
            self._rebind(schedules)

    def __reduce__(self) -> tuple[Any, ...]:
        shared = {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}
        return reduced(self, **shared)
