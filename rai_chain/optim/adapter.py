"""The stateful home: a pipeline as a `torch.optim.Optimizer`.

Thin by intent. A step reads the hyperparameters of each param group, puts `p.grad` through the
same links that the pure home uses, in place, lets the inner optimizer step, and projects.
"""

import copyreg
import functools
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import SGD, Optimizer

from ..core.chain import link_names
from ..data.checks import check_leaves, overlaps
from ..data.hyper import Flag, refuse_key
from ..data.plain import is_plain
from ..data.rows import check_param_ndim
from ..data.tree import Leaves, flatten
from ..engine.chunks import apply_elementwise
from ..engine.run import Phase
from .fast.compiled import CompiledStep, Work, refuse_state
from .fast.layer import quick, unhooked
from .fast.pieces import ELEMENTWISE, PIECE, step_in_pieces
from .slots import (
    CHAIN_KEYS,
    COUNT,
    HOOKS,
    SCALE_BIAS,
    STATES,
    Group,
    GroupRun,
    Hooks,
    Members,
    Plan,
    Slot,
    check_states,
    count_of,
    generators_of,
    group_run,
    moved,
    run_in_place,
    scales,
    schedules_of,
    try_projections,
    values_at,
)

_ONE = flatten([None])[1]


class ParamTransformingOptimizer(Optimizer):
    """An optimizer that transforms gradients before, and parameters after, another one's step.

    Subclass it and override `_pre_step_transform_` and `_post_step_transform_`, which work in
    place on one parameter as a batch (N, d0, ...); or put links together, which needs no class,
    with `ChainedParamTransformingOptimizer`. `param_groups`, `defaults` and `state` are the
    inner optimizer's own.

    Args:
        params: parameters, or dicts that define param groups. Ignored with an instance as
            `InnerOpt`.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group.
        grad_scale: multiplies the transformed gradient. Per group.
        grad_bias: added to the transformed gradient, after the scale. Per group.
        defaults: default values of param-group keys; they win over the arguments.
        compile: make the whole step one compiled graph, from the second step on: the first
            starts the inner optimizer's state. It takes seconds to minutes and may differ in the
            last bit; new learning rates and hyperparameters of the chain compile nothing again.
        **inner_opt_kwargs: arguments of `InnerOpt`.

    Raises:
        TypeError: `InnerOpt` is no optimizer, or an argument has the wrong type.
        ValueError: a value outside its interval, or `param_ndim` beyond a parameter's.

    Example:
        >>> import torch
        >>> class Halved(ParamTransformingOptimizer):
        ...     def _pre_step_transform_(self, param, optim_group):
        ...         param.grad /= 2
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> optim = Halved([x], lr=1.0)
        >>> (3 * x).sum().backward()
        >>> optim.step()
        >>> x
        tensor([-0.5000,  0.5000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    inner_opt: Optimizer
    _chain: "tuple[ParamTransformingOptimizer, ...]" = ()
    _owner: "ParamTransformingOptimizer | None" = None  # the chain that this is a member of
    _slots: list[Slot]  # the links whose hyperparameters are checked, scheduled and drawn
    _stepped: bool = False  # whether the inner optimizer has its state
    _graph: "tuple[list[int], CompiledStep] | None" = None
    _projects: bool = True  # whether there may be parameter links
    _numel: int = 0  # elements of all parameters
    _later: Sequence[tuple[Group, Tensor, Group]] = ()  # the schedules' values after this step

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        compile: bool = False,
        **inner_opt_kwargs: Any,
    ) -> None:
        Flag().check("compile", compile)
        self._compile = compile
        own = {"param_ndim": param_ndim, "grad_scale": grad_scale, "grad_bias": grad_bias}
        defaults = {**own, **(defaults or {})}
        self._plans: list[Plan] = []
        if builds(InnerOpt, Optimizer):
            if params is None:
                raise TypeError("`params` must be given with an optimizer type  Got: None")
            super().__init__(params, defaults)
            self.inner_opt = InnerOpt(self.param_groups, **inner_opt_kwargs)
            self._share(params, defaults)
        elif isinstance(InnerOpt, Optimizer):
            shared = [InnerOpt.defaults, *InnerOpt.param_groups]
            before = [dict(own) for own in shared]
            try:
                super().__init__(InnerOpt.param_groups, defaults)
                self.inner_opt = InnerOpt
                self._share(params, defaults)
            except BaseException:
                for own, old in zip(shared, before, strict=True):
                    own.clear()
                    own.update(old)
                raise
        else:
            raise TypeError(f"`InnerOpt` must be an optimizer type or instance  Got: {InnerOpt!r}")

    def _share(self, params: Any, defaults: Group) -> None:
        """Make everything the inner optimizer's, and refuse what does not fit."""
        self._inner_keys = frozenset(self.inner_opt.defaults)
        self.inner_opt.defaults.update(defaults)
        self.__setstate__(self.inner_opt.__getstate__())
        self._slots = self._lay_out(self._members(params))
        if not isinstance(self.inner_opt, Aside):
            plans = self._ready_plans()
            if self._compile:
                refuse_state(self.inner_opt, zip(self.param_groups, plans, strict=True))
            self._save_generators()

    # ------------------------------------------------------------------ what is in the chain

    def _links(self) -> list[Slot]:
        """The links of a class that has some: overridden instead of the two hooks."""
        return []

    def _members(self, params: Any) -> list[Slot]:
        """The members in order, for `_lay_out`."""
        return self._links()

    def _lay_out(self, slots: list[Slot]) -> list[Slot]:
        """Name the members, and give every hyperparameter its param-group key."""
        below = _slots_below(self)  # their states are in the same param group
        every = [*below, *slots]
        names = link_names(tuple(s.link for s in every), tuple(s.given for s in every))
        for slot, name in zip(slots, names[len(below) :], strict=True):
            slot.name = name
        self._refused: list[str] = []
        self._watch(slots)
        base = ParamTransformingOptimizer
        own = any(getattr(type(self), hook) is not getattr(base, hook) for hook in HOOKS.values())
        self._running = [Slot(Hooks(self), {})] if own else slots
        return slots

    def _watch(self, slots: list[Slot], more: Iterable[str] = ()) -> None:
        """The param-group keys whose values are checked, and may be schedules."""
        stepping = getattr(self.inner_opt, "hyperparameters", ())  # of a `StepOptimizer`
        keys = (key for slot in slots for key in slot.keys.values())
        self._keys = [*CHAIN_KEYS, *keys, *stepping, *more]

    @property
    def _label(self) -> str:
        return type(self).__name__

    @property
    def _title(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------------ checks

    def _check(self, group: Group) -> None:
        """Refuse a param group whose values do not fit; schedules were evaluated."""
        for key in self._refused:
            if key in group:
                refuse_key(key, [slot.answers for slot in self._slots], "this optimizer")
        for slot in self._slots:
            slot.check(group, self._label)
        SCALE_BIAS.check(group, self._label)
        check_param_ndim(group["param_ndim"], *group["params"])
        check = getattr(self.inner_opt, "check_group", None)  # a `StepOptimizer`
        if check is not None:
            check(group)

    def _ready_plans(self) -> list[Plan]:
        """The plan of each group; where a value is another than it was, checked again."""
        if self.param_groups is not self.inner_opt.param_groups:  # it was loaded by itself
            self.__setstate__(self.inner_opt.__getstate__())
        groups, plans = self.param_groups, self._plans
        if len(plans) < len(groups):
            plans.extend(Plan() for _ in groups[len(plans) :])
        changed = [pair for pair in zip(groups, plans, strict=False) if not pair[1].holds(pair[0])]
        if changed:
            found = [self._evaluate(group, plan) for group, plan in changed]
            for (group, plan), (schedules, values) in zip(changed, found, strict=True):
                group.update(values)
                plan.schedules.update(schedules)
                slots = [*self._running, SCALE_BIAS] if scales(group) else self._running
                plan.read(group, [*self._keys, *self._refused], slots)
            self._projects = any(plan.members["parameter"].links for plan in plans)
            self._numel = sum(plan.numel for plan in plans)
        return plans

    def _evaluate(self, group: Group, plan: Plan) -> tuple[Group, Group]:
        """The schedules among a group's values and their values now; refuses what does not fit."""
        schedules = schedules_of(group, self._keys)
        values = values_at(schedules, group)
        group = {**group, **values}
        self._check(group)
        projecting = [slot for slot in self._slots if slot.link.phase == "parameter"]
        keys = [key for slot in projecting for key in slot.keys.values()]
        if not plan.tried or any(plan.is_new(key, group[key]) for key in keys):
            try_projections(projecting, group)
        return schedules, values

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group; what it does not give it takes from `defaults`.

        Args:
            param_group: ``params`` and any hyperparameter of the chain or the inner optimizer.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value outside its interval, an ambiguous key, or a missing one.
        """
        if "inner_opt" not in self.__dict__:  # torch's constructor calls this
            super().add_param_group(param_group)
            return
        if self._owner is not None:
            self._owner.add_param_group(param_group)
            return
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            params = list(params)
        items = [params] if isinstance(params, Tensor) else params
        tensors = [p[1] if isinstance(p, tuple) else p for p in items]
        known = [p for p in tensors if isinstance(p, Tensor)]  # torch refuses the others
        self._evaluate({**self.defaults, **param_group, "params": known}, Plan())
        param_group["params"] = params
        self.inner_opt.add_param_group(param_group)
        self._ready_plans()

    # ------------------------------------------------------------------ the two hooks

    def _pre_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param.grad` in place, before the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`; its `grad`
                likewise.
            optim_group: the param group of the parameter.
        """
        if param.grad is not None:
            self._transform_batch("gradient", param, param.grad, optim_group)

    def _post_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param` in place, after the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`.
            optim_group: the param group of the parameter.
        """
        self._transform_batch("parameter", param, param, optim_group)

    def _transform_batch(self, phase: Phase, param: Tensor, leaf: Tensor, group: Group) -> None:
        """This class's own links on one batch, for a subclass that calls `super()`."""
        run = GroupRun(_ONE, [param], -1, writable=[True], group=group)
        members = Members.of(self._slots, phase, group)
        if run_in_place(members, [leaf], {}, run, phase, fresh=True):
            raise ValueError(
                f"`{type(self).__name__}` must not override hooks, as a link of it keeps a state  "
                f"Got: {members.links!r}"
            )

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def _apply_pre_step_transform_(self) -> None:
        """Put every gradient through the chain, in place; `step` calls it."""
        self._before_step()

    @torch.no_grad()
    def _apply_post_step_transform_(self) -> None:
        """Put every parameter through the chain, in place; `step` calls it."""
        self._ready_plans()
        self._after_step()

    def _before_step(self) -> None:
        work = self._gradients()
        if all(plan.is_elementwise and is_plain(leaves) for _, plan, leaves in work):
            for _, plan, leaves in work:
                apply_elementwise(plan.calls or (), leaves, [True] * len(leaves))
            return
        later = self._values_after(work)
        before = [(g, g.get_state()) for g in self._generators.values()]
        try:
            new = [self._transform("gradient", *one) for one in work]
        except BaseException:
            for generator, state in before:
                generator.set_state(state)
            raise
        for (group, plan, _), states in zip(work, new, strict=True):
            _commit("gradient", group, plan, states)
        self._save_generators()
        self._later = later

    def _values_after(self, work: Work) -> list[tuple[Group, Tensor, Group]]:
        """The schedules' values after this step; they are evaluated before anything is written."""
        return [
            (group, count_of(group) + 1, values_at(plan.schedules, group, 1))
            for group, plan, _ in work
            if plan.schedules
        ]

    def _gradients(self) -> Work:
        """Each group with its plan and gradients; everything that can be refused is, here."""
        plans = self._ready_plans()
        work = [
            (group, plan, [p.grad for p in group["params"]])
            for group, plan in zip(self.param_groups, plans, strict=False)
        ]
        for _, plan, leaves in work:
            check_leaves(leaves, plan.spec, "grads")
        for group, _, leaves in work:
            for i, grad in enumerate(leaves):
                if grad is None or grad.is_contiguous():
                    continue
                if overlaps(grad):  # its elements share memory
                    dense = grad.clone(memory_format=torch.contiguous_format)
                    leaves[i] = group["params"][i].grad = dense
        return work

    def _after_step(self) -> None:
        if self._projects or self._later:
            for group, plan in zip(self.param_groups, self._ready_plans(), strict=False):
                states = self._transform("parameter", group, plan, group["params"])
                _commit("parameter", group, plan, states)
        self._count_schedules()

    def _count_schedules(self) -> None:
        for group, count, values in self._later:
            group[STATES] = {**group.get(STATES, {}), COUNT: count}
            group.update(values)
        self._later = ()

    def _transform(self, phase: Phase, group: Group, plan: Plan, leaves: Leaves) -> Group:
        """One phase of one group, in place; returns the links' new states."""
        states: Group = group.get(STATES, {})
        members = plan.members[phase]
        if not members.links:
            return states
        run = group_run(group, plan.spec)
        return run_in_place(members, leaves, states, run, phase, phase not in plan.started)

    @quick
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Transform the gradients, step the inner optimizer, transform the parameters.

        Args:
            closure: evaluates the model and returns the loss; the inner optimizer may call it
                several times, and each time the gradients it leaves are transformed.

        Returns:
            The inner optimizer's loss, or None without a closure.

        Raises:
            TypeError, ValueError: a gradient or a hyperparameter that does not fit; nothing
                has been written then.
        """
        recording = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # what `no_grad` does, without its microseconds
        try:
            loss = None
            if self._compile and closure is None and self._stepped:
                self._compiled_step()
                return None
            if closure is None:
                if not self._step_in_pieces():
                    self._before_step()
                    unhooked(self.inner_opt)()
                self._stepped = True
            else:
                loss = self.inner_opt.step(self._create_closure(closure))
            self._after_step()
        finally:
            torch._C._set_grad_enabled(recording)
        return loss

    def _step_in_pieces(self) -> bool:
        """Transform and step while gradients are in cache, where that is possible and pays."""
        inner = self.inner_opt
        if self._numel <= PIECE or type(inner) not in ELEMENTWISE:
            return False
        bare, plans = unhooked(inner), self._ready_plans()
        if not isinstance(bare, functools.partial) or not all(plan.may_cut for plan in plans):
            return False
        work = self._gradients()
        if not all(is_plain([*group["params"], *leaves]) for group, _, leaves in work):
            return False
        calls = [(group, plan.calls or ()) for group, plan, _ in work]
        step_in_pieces(inner, bare.func, calls)
        return True

    def _compiled_step(self) -> None:
        work = self._gradients()
        later = self._values_after(work)
        sizes = [len(group["params"]) for group in self.param_groups]
        if self._graph is None or self._graph[0] != sizes:
            self._graph = sizes, CompiledStep(self.inner_opt, work, {*self._keys, STATES})
        self._graph[1](work)
        self._later = later
        self._count_schedules()

    def _create_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def transformed() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._apply_pre_step_transform_()
            return loss

        return transformed

    def project(self) -> None:
        """Put every parameter through the chain; deprecated, as in rai-toolbox."""
        warnings.warn(
            FutureWarning("`project` is deprecated: use `_apply_post_step_transform_`"),
            stacklevel=2,
        )
        self._apply_post_step_transform_()

    # ------------------------------------------------------------------ state

    @functools.cached_property
    def _generators(self) -> dict[str, Generator]:
        return generators_of(self._slots)

    def _save_generators(self) -> None:
        """Keep the states of explicit generators where checkpoints find them."""
        own = {k: g for k, g in self._generators.items() if g is not torch.default_generator}
        if own:
            saved = {key: generator.get_state() for key, generator in own.items()}
            first = self.param_groups[0]
            first[STATES] = {**first.get(STATES, {}), **saved}

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, and so of this one: they share it."""
        if self._owner is not None:
            return self._owner.state_dict()
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._save_generators()
        state: dict[str, Any] = self.inner_opt.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the next steps equal those of the saved optimizer.

        Args:
            state_dict: from `state_dict`, of this class or of rai-toolbox's. Hyperparameters it
                lacks keep their values.

        Raises:
            ValueError: other param groups, a hyperparameter outside its interval, or the state
                of another chain.
        """
        if self._owner is not None:
            self._owner.load_state_dict(state_dict)
            return
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        plain: Optimizer = self
        while isinstance(plain, ParamTransformingOptimizer):
            plain = plain.inner_opt
        plain.load_state_dict({**state_dict, "param_groups": self._merged(state_dict)})
        self.__setstate__(plain.__getstate__())
        self._resume()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _merged(self, state_dict: dict[str, Any]) -> list[Group]:
        """The saved param groups, completed by what they lack; refused if they do not fit."""
        saved: list[Group] = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            return saved  # torch refuses them
        merged = []
        for own, new in zip(self.param_groups, saved, strict=True):
            kept = {k: v for k, v in own.items() if k not in ("params", "param_names", STATES)}
            merged.append({**kept, **new})
            loaded = {**merged[-1], "params": own["params"]}
            self._evaluate(loaded, Plan(tried=True))
            check_states(new.get(STATES, {}), [*_slots_below(self), *self._slots], loaded)
        return merged

    def _resume(self) -> None:
        """Go on from the states in the param groups."""
        if isinstance(self.inner_opt, ParamTransformingOptimizer):
            self.inner_opt._resume()
        for group, plan in zip(self.param_groups, self._plans, strict=False):
            if STATES in group and group["params"]:
                group[STATES] = moved(group[STATES], group["params"][0].device)
            group.update(values_at(plan.schedules, group))
        states = self.param_groups[0].get(STATES, {})
        for key, generator in self._generators.items():
            if key in states:
                generator.set_state(states[key])

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "inner_opt" in state:  # from pickle or deepcopy
            default = torch.default_generator
            own = {k: default if v is _TheDefaultGenerator else v for k, v in state.items()}
            self.__dict__.update(own)
            state = self.inner_opt.__getstate__()
        self.inner_opt.__setstate__(state)
        state = self.inner_opt.__getstate__()
        super().__setstate__(state)
        for plan in self._plans:
            plan.forget()
        for member in self._chain:
            member.__setstate__(state)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inner_opt.__getstate__()
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        own = {
            key: _TheDefaultGenerator if value is torch.default_generator else value
            for key, value in own_attributes(self).items()
            if key not in _MADE_AGAIN
        }
        return copyreg.__newobj__, (type(self),), own  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        text = f"{self._title} [{type(self.inner_opt).__name__}]("
        for i, group in enumerate(self.param_groups):
            shown = sorted(group.keys() - {"params", STATES})
            lines = [f"    {key}: {group[key]}\n" for key in shown]
            text += f"\nParameter Group {i}\n" + "".join(lines)
        return text + ")"


_MADE_AGAIN = ("defaults", "state", "param_groups", "_generators", "_later", "_graph", "_stepped")


def builds(x: Any, kind: type = Optimizer) -> bool:
    """Whether x(...) makes an instance of `kind`: a class of it, or a partial of one."""
    target = x.func if isinstance(x, functools.partial) else x
    return inspect.isclass(target) and issubclass(target, kind)


def _slots_below(optimizer: ParamTransformingOptimizer) -> list[Slot]:
    """The members of the inner optimizers that transform too, the innermost first."""
    inner = optimizer.inner_opt
    if not isinstance(inner, ParamTransformingOptimizer):
        return []
    return [*_slots_below(inner), *inner._slots]


class Aside(Optimizer):
    """Copies of the shared groups, for a member to be built on: what it sets there is its own."""

    def __init__(self, groups: list[Group]) -> None:
        state: Group = {"defaults": {}, "state": defaultdict(dict), "param_groups": groups}
        self.__setstate__(state)


_OF_TORCH = ("_opt_called", "_zero_grad_profile_name", "step")


def own_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """What to copy of an optimizer: all but hooks and what schedulers attach, as torch does."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if not key.startswith("_optimizer_") and key not in _OF_TORCH
    }


class _TheDefaultGenerator:
    """Stands for `torch.default_generator` in copies and pickles: there is one."""


def _commit(phase: Phase, group: Group, plan: Plan, states: Group) -> None:
    if states:
        group[STATES] = states
    plan.started.add(phase)
