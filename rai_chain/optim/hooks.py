"""A class with the two hooks of rai-toolbox, as links of a pipeline."""

import copyreg
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..data.hyper import REQUIRED
from ..data.rows import TREE, UNSET, to_batch
from ..data.tree import Leaves, flatten
from ..engine.run import Phase, Run, State, run_links
from .bound import GroupRun
from .layout import OWN, Entry, Scheduled
from .states import Group

HOOKS: dict[Phase, str] = {
    "gradient": "_pre_step_transform_",
    "parameter": "_post_step_transform_",
}


_ONE = flatten([None])[1]


class Hooks(Scheduled):
    """One hook of a user's class, on the tensors of a group."""

    takes_parts = False
    param_ndim: Any
    _owner: "weakref.ref[Any]"  # or the class and its link would hold each other

    def __new__(
        cls, owner: Any, phase: Phase, values: Group | None = None, ndim: Any = UNSET
    ) -> "Hooks":
        self: Any = super().__new__(cls)
        self.phase, self.param_ndim, self.values = phase, ndim, values or {}
        if owner is not None:
            self._owner, self.name = weakref.ref(owner), type(owner).__name__
        return self  # type: ignore[no-any-return]

    @property
    def owner(self) -> Any:
        """The optimizer whose hook it is."""
        return self._owner()

    def __repr__(self) -> str:
        return f"{self.name}.{HOOKS[self.phase]}"

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {**self.__dict__, "_owner": self.owner}
        return copyreg.__newobj__, (Hooks, None, self.phase), kept  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_owner": weakref.ref(state["_owner"])})

    def check_values(self, values: Group) -> None:
        for link, own in self.owner._own():
            link.check_values({**link.values, **{n: values[k] for n, k in own.items()}})

    def _rows(self, run: Run) -> Any:
        return run.param_ndim if self.param_ndim is UNSET else self.param_ndim

    def check_fit(self, values: Group, leaves: Leaves, run: Run) -> None:
        if isinstance(run, GroupRun) and run.group.get("differentiable"):
            raise ValueError(
                f"`differentiable` must be False beside {self!r}, which writes in place, where no "
                "derivative is seen  Got: True"
            )
        if self._rows(run) == TREE:
            raise ValueError(
                f"`param_ndim` must be an int or None for {self!r}, which sees one parameter at a "
                f"time  Got: {TREE!r}"
            )

    def apply(self, leaves: Leaves, state: State, run: Run, values: Group) -> tuple[Leaves, State]:
        assert isinstance(run, GroupRun) and run.params is not None
        group = run.group
        if any(group.get(name) is not value for name, value in values.items()):
            group = {**group, **values}  # bare keys that have another meaning in the chain
        ndim = self._rows(run)
        for param, leaf in zip(run.params, leaves, strict=True):
            if param is not None and leaf is not None:
                self._call(param, ndim, group)
        return leaves, self.tick(state)

    def _call(self, param: Tensor, ndim: int | None, group: Group) -> None:
        """The hook on one parameter; a layout without a view is written back."""
        batch = to_batch(param, ndim)
        seen = batch.grad
        getattr(self.owner, HOOKS[self.phase])(batch, optim_group=group)
        if batch.grad is not seen:
            raise ValueError(
                f"`{self!r}` must modify `param.grad` in place  "
                "Got: another tensor, set as `param.grad`"
            )
        for target, result in ((param, batch), (param.grad, batch.grad)):
            if target is not None and result is not None and result.data_ptr() != target.data_ptr():
                target.copy_(result.reshape(target.shape))


def hooks_of(owner: Any, ndim: Any = UNSET) -> Entry:
    """The hooks of a class as one entry of a chain, with what it has in its own param group."""
    values = {k: owner.defaults.get(k, REQUIRED) for _, own in owner._own() for k in own.values()}
    skipped = OWN | owner._inner_keys | owner.inner_opt.defaults.keys() - owner.defaults.keys()
    values |= {k: v for k, v in owner.defaults.items() if k not in skipped}
    pair = [Hooks(owner, phase, values, ndim) for phase in HOOKS]
    return Entry(pair[0], tuple(values), None, pair[1])


class HookMethods(Optimizer):
    """The two hooks, which a subclass may override."""

    _own: Any  # the links of the class, each with hyperparameter -> key

    def _pre_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param.grad` in place, before the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`; its `grad`
                likewise.
            optim_group: the param group of the parameter.
        """
        if self is not None and param.grad is not None:
            self._transform_batch("gradient", param, param.grad, optim_group)

    def _post_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param` in place, after the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`.
            optim_group: the param group of the parameter.
        """
        if self is not None:
            self._transform_batch("parameter", param, param, optim_group)

    @torch.no_grad()
    def _transform_batch(self, phase: Phase, param: Tensor, leaf: Tensor, group: Group) -> None:
        """This class's own links on one batch, for a subclass that calls `super()`."""
        for link, own in self._own():
            if link.phase != phase:
                continue
            values = {**link.values, **{n: group[k] for n, k in own.items()}}
            if link.keeps(values) or link.needs:
                raise ValueError(
                    f"`{type(self).__name__}` must not override hooks, as a link of it keeps a "
                    f"state, or needs the loss or the raw gradient  Got: {link!r}"
                )
            run = GroupRun(_ONE, [param], -1, writable=[True], group=group)
            out, _ = run_links([link], [link.names[0]], [leaf], [{}], run, [values], phase)
            if out[0] is not None and out[0] is not leaf:
                leaf.copy_(out[0])
