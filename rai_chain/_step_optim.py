"""Optimizers whose update is a link that steps by itself: Frank-Wolfe, and any other."""

import copyreg
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, default_generator
from torch.optim import Optimizer

from ._adapter import ParamTransformingOptimizer, own_attributes
from ._gradient_optim import L1qNormedGradientOptim, L2NormedGradientOptim, SignedGradientOptim
from ._hyper import Range
from ._slots import STATES, STEP, Group, Slot, slot_of
from ._tree import Leaves, flatten
from .base import Link, Run, State
from .frank_wolfe import frank_wolfe_step, one_hot_sign
from .link import is_schedule
from .transforms import TINY


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


class FrankWolfe(StepOptimizer):
    """Step by w <- (1 - a) w - a lmo_scaling_factor g, with a = lr / (lr + step).

    Args:
        params: parameters, or dicts that define param groups. Their gradients g are directions
            of dual norm one.
        lr: >= 0; at most 1 without the default schedule. Per group.
        lmo_scaling_factor: radius of the ball; a group's `epsilon` wins over it. Per group.
        use_default_lr_schedule: False makes a = lr.
        div_by_zero_eps: smallest denominator of a, >= 0.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optim = FrankWolfe([x], lmo_scaling_factor=3.0)
        >>> (torch.tensor([0.0, 1.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0., -3.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 2.0,
        lmo_scaling_factor: float = 1.0,
        use_default_lr_schedule: bool = True,
        div_by_zero_eps: float = TINY,
    ) -> None:
        if not isinstance(use_default_lr_schedule, bool):
            raise TypeError(
                f"`use_default_lr_schedule` must be a bool  Got: {use_default_lr_schedule!r}"
            )
        self._use_default_lr_schedule = use_default_lr_schedule
        self._eps = div_by_zero_eps
        link = frank_wolfe_step(lr, use_default_lr_schedule, div_by_zero_eps)
        defaults = {"lr": lr, "lmo_scaling_factor": lmo_scaling_factor}
        super().__init__(params, link, defaults=defaults)

    @property
    def hyperparameters(self) -> list[str]:
        """The param-group keys of the hyperparameters."""
        return ["lr", "lmo_scaling_factor", "epsilon"]

    def check_group(self, group: Group) -> None:
        """Refuse a param group whose values do not fit."""
        Range().check("lmo_scaling_factor", group["lmo_scaling_factor"])
        if "epsilon" in group:
            Range(0.0).check("epsilon", group["epsilon"])
        super().check_group(group)

    def _trees(self, group: Group) -> Iterator[tuple[list[Tensor], State]]:
        return (([p], self.state.get(p)) for p in group["params"])

    def _save(self, group: Group, params: list[Tensor], state: State) -> None:
        self.state[params[0]].update(state)

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        for own in self.state.values():  # rai-toolbox counts in Python integers
            if isinstance(own.get("step"), int):
                own["step"] = torch.tensor(own["step"])

    def _values(self, group: Group) -> Group:
        radius: Any = group.get("epsilon", group["lmo_scaling_factor"])
        scale = (lambda step: -radius(step)) if is_schedule(radius) else -radius
        return {**self._link.values, "lr": group["lr"], "grad_scale": scale}


class _FrankWolfeMethod(ParamTransformingOptimizer):
    """What the methods over one ball share: a direction of ascent, and `FrankWolfe` inside."""

    def __init__(
        self,
        params: Any,
        *,
        epsilon: float,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
        )


class L1FrankWolfe(_FrankWolfeMethod):
    """Minimise over the L1 ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = L1FrankWolfe([x], epsilon=2.0, param_ndim=None)
        >>> (torch.tensor([1.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([0., 2.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """

    def _links(self) -> list[Slot]:
        return [slot_of(one_hot_sign)]


class L2FrankWolfe(_FrankWolfeMethod, L2NormedGradientOptim):
    """Minimise over the L2 ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = L2FrankWolfe([x], epsilon=5.0, param_ndim=None)
        >>> (torch.tensor([3.0, -4.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-3.,  4.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """


class LinfFrankWolfe(_FrankWolfeMethod, SignedGradientOptim):
    """Minimise over the Linf ball by Frank-Wolfe steps.

    Args:
        params: parameters, or dicts that define param groups.
        epsilon: radius of the ball. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: has no effect here. Per group.
        div_by_zero_eps: smallest denominator, >= 0.

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> optim = LinfFrankWolfe([x], epsilon=2.0)
        >>> (torch.tensor([1.0, -3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-2.,  2.], requires_grad=True)

    Source: Jaggi 2013, "Revisiting Frank-Wolfe", ICML; the class of the same name in rai-toolbox.
    """


class L1qFrankWolfe(L1qNormedGradientOptim):
    """Minimise by Frank-Wolfe steps towards sparse points of the L1 sphere.

    Args:
        params: parameters, or dicts that define param groups.
        q: fraction of zeros, 0 <= q <= 1. Per group.
        epsilon: radius of the ball. Per group.
        dq: half width of the interval that q is drawn from, once per tensor and step. Per group.
        lr, use_default_lr_schedule: as in `FrankWolfe`.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        div_by_zero_eps: smallest denominator, >= 0.
        generator: draws q, see `TopQGradientOptimizer`.

    Raises:
        TypeError: `generator` is no `torch.Generator`.
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, requires_grad=True)
        >>> optim = L1qFrankWolfe([x], q=0.5, epsilon=2.0, param_ndim=None)
        >>> (torch.tensor([1.0, -3.0, 2.0, 0.0]) * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([ 0.,  1., -1.,  0.], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    def __init__(
        self,
        params: Any,
        *,
        q: float,
        epsilon: float,
        dq: float = 0.0,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        param_ndim: int | None = -1,
        div_by_zero_eps: float = TINY,
        generator: Generator = default_generator,
    ) -> None:
        super().__init__(
            params,
            FrankWolfe,
            lmo_scaling_factor=epsilon,
            q=q,
            dq=dq,
            lr=lr,
            use_default_lr_schedule=use_default_lr_schedule,
            param_ndim=param_ndim,
            div_by_zero_eps=div_by_zero_eps,
            generator=generator,
        )
