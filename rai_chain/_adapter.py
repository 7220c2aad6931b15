"""The stateful home: a pipeline as a `torch.optim.Optimizer`.

Thin by intent. A step reads the hyperparameters of each param group, puts `p.grad` through the
same links that the pure home uses, in place, lets the inner optimizer step, and projects.
"""

import functools
import inspect
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import SGD, Optimizer

from ._hyper import REQUIRED, refuse_key
from ._rows import check_param_ndim, to_batch
from ._tree import Leaves, flatten, unflatten
from .base import GradientTransformation, Link, Phase, Run, check_leaves, is_plain, run_links
from .combine import as_links, check_order, link_names
from .link import UNSET, Factory, FunctionLink, is_schedule
from .transforms import draw_q, scale_bias

Group = dict[str, Any]
STATES = "link_states"  # the param-group key of the links' states, where there are any
_CHAIN_KEYS = frozenset({"grad_scale", "grad_bias", "param_ndim"})


@dataclass(eq=False)
class Slot:
    """A member of an optimizer's pipeline: a link, or a user's class with hooks of its own."""

    link: Link | None
    bare: dict[str, str]  # hyperparameter -> the name of its param-group key
    defaults: Group = field(default_factory=dict)  # hyperparameter -> default value
    fixed: Group = field(default_factory=dict)  # hyperparameters that are no param-group key
    generator: Generator | None = None
    hooks: "ParamTransformingOptimizer | None" = None  # whose, without a link; None: the owner's
    given: str | None = None  # a name from `named_chain`
    name: str = ""
    keys: dict[str, str] = field(default_factory=dict)  # hyperparameter -> param-group key

    def values(self, group: Group) -> Group:
        """The hyperparameters of a group."""
        return {**self.fixed, **{name: group[key] for name, key in self.keys.items()}}

    def check(self, group: Group, owner: str) -> None:
        """Refuse values of a group that are missing or do not fit."""
        for name, key in self.keys.items():
            if key not in group:
                raise ValueError(
                    f"`{name}` must be given, to {owner} or in each param group  Got: no `{key}`"
                )
        if self.link is not None:
            self.link.check_values(self.values(group))

    def draws(self, group: Group) -> bool:
        """Whether a generator draws the q of each tensor of this group."""
        if self.generator is None:
            return False
        dq = group[self.keys["dq"]]
        return isinstance(dq, Tensor) or is_schedule(dq) or dq != 0


def slot_of(factory: Factory, *, fixed: Group | None = None, **bare: str) -> Slot:
    """A slot for a link that reads its hyperparameters from the param group.

    Args:
        factory: a link factory.
        fixed: hyperparameters that are not read from the group.
        **bare: hyperparameter=key, where the key has another name.
    """
    names = factory.definition.rules
    fixed = fixed or {}
    link = FunctionLink(factory, {**dict.fromkeys(names), **fixed}, UNSET, 0, check=False)
    return Slot(link, {n: bare.get(n, n) for n in names if n not in fixed}, fixed=fixed)


def slots_of_links(transformation: Any, place: int) -> list[Slot]:
    """The slots of a pure pipeline in an optimizer."""
    links = as_links(transformation, place)
    given = getattr(transformation, "given", (None,) * len(links))
    return [
        Slot(link, {n: n for n in link.values}, dict(link.values), given=name)
        for link, name in zip(links, given, strict=True)
    ]


def builds(x: Any, kind: type = Optimizer) -> bool:
    """Whether x(...) makes an instance of `kind`: a class of it, or a partial of one."""
    target = x.func if isinstance(x, functools.partial) else x
    return inspect.isclass(target) and issubclass(target, kind)


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
    _slots: list[Slot]
    _caches: dict[int, list[Any]]

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        defaults = {} if defaults is None else defaults
        self._scale_bias = {"grad_scale": grad_scale, "grad_bias": grad_bias}
        for key, value in {"param_ndim": param_ndim, **self._scale_bias}.items():
            defaults.setdefault(key, value)
        if builds(InnerOpt):
            if params is None:
                raise TypeError("`params` must be given with an optimizer type  Got: None")
            super().__init__(params, defaults)
            self.inner_opt = InnerOpt(self.param_groups, **inner_opt_kwargs)
        elif isinstance(InnerOpt, Optimizer):
            self.inner_opt = InnerOpt
            super().__init__(InnerOpt.param_groups, defaults)
        else:
            raise TypeError(f"`InnerOpt` must be an optimizer type or instance  Got: {InnerOpt!r}")
        inner = self.inner_opt.defaults
        self._inner_keys = frozenset(inner) - frozenset(defaults)
        inner.update(defaults)
        self.__setstate__(self.inner_opt.__getstate__())
        self._slots = self._lay_out(self._members(params))
        self._schedules: list[dict[str, Any]] = []
        for group in self.param_groups:
            self._check_group(group)
            self._take_schedules(group)
        self._save_generators()

    # ------------------------------------------------------------------ what is in the chain

    def _links(self) -> list[Slot]:
        """The links of a class that has some: overridden instead of the two hooks."""
        return []

    def _members(self, params: Any) -> list[Slot]:
        """The members in order, for `_lay_out`."""
        own = self._links()
        base = ParamTransformingOptimizer
        if any(
            getattr(type(self), hook) is not getattr(base, hook)
            for hook in ("_pre_step_transform_", "_post_step_transform_")
        ):
            return [Slot(None, {})]
        return own

    def _lay_out(self, slots: list[Slot]) -> list[Slot]:
        """Give every hyperparameter its param-group key, and the groups their values."""
        for slot in slots:
            slot.keys = dict(slot.bare)
        return slots

    @property
    def _label(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------------ checks

    def _check_group(self, group: Group) -> None:
        """Refuse a param group before it is used; what was found valid is not read again."""
        watched = [group.get(key, REQUIRED) for slot in self._slots for key in slot.keys.values()]
        watched += [group["param_ndim"], group["grad_scale"], group["grad_bias"]]
        last = self._caches.get(id(group), ())
        if len(watched) == len(last) and all(a is b for a, b in zip(watched, last, strict=True)):
            return
        for slot in self._slots:
            slot.check(group, self._label)
        _SCALE_BIAS.check(group, self._label)
        check_param_ndim(group["param_ndim"], *group["params"])
        self._caches[id(group)] = watched

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group; what it does not give it takes from `defaults`.

        Args:
            param_group: ``params`` and any hyperparameter of the chain or the inner optimizer.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value outside its interval, an ambiguous key, or a missing one.
        """
        if "_slots" in self.__dict__:
            self._refuse_ambiguous(param_group)
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            tensors = [p[1] if isinstance(p, tuple) else p for p in params]
            self._check_group({**self.defaults, **param_group, "params": tensors})
            param_group["params"] = params
        super().add_param_group(param_group)
        if "_slots" in self.__dict__:
            self._take_schedules(self.param_groups[-1])

    def _take_schedules(self, group: Group) -> None:
        """Keep the schedules of a group beside it: the group shows their values."""
        keys = {key for slot in self._slots for key in slot.keys.values()}
        found = {key: group[key] for key in keys if is_schedule(group.get(key))}
        start = torch.zeros((), dtype=torch.int64)
        group.update({key: schedule(start) for key, schedule in found.items()})
        self._schedules.append(found)

    def _refuse_ambiguous(self, group: Group) -> None:
        known = [slot.keys for slot in self._slots]
        reserved = self._inner_keys | _CHAIN_KEYS
        final = {key for own in known for key in own.values()} | reserved
        for key in group:
            if key not in final and any(key in slot.bare.values() for slot in self._slots):
                named = [{b: slot.keys[n] for n, b in slot.bare.items()} for slot in self._slots]
                refuse_key(key, named, "this optimizer")

    # ------------------------------------------------------------------ the two hooks

    def _pre_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param.grad` in place, before the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`; its `grad`
                likewise.
            optim_group: the param group of the parameter.
        """
        if param.grad is not None:
            self._hook("gradient", param, param.grad, optim_group)

    def _post_step_transform_(self, param: Tensor, optim_group: Group) -> None:
        """Transform `param` in place, after the inner optimizer's step.

        Args:
            param: the parameter as a batch (N, d0, ...), see `rai_chain.to_batch`.
            optim_group: the param group of the parameter.
        """
        self._hook("parameter", param, param, optim_group)

    def _hook(self, phase: Phase, param: Tensor, leaf: Tensor, group: Group) -> None:
        """This class's own links on one batch, for a subclass that calls `super()`."""
        slots = self._links()
        for slot in slots:
            slot.keys = slot.bare
        self._run(slots, phase, group, [leaf], [param], -1, {})

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def _apply_pre_step_transform_(self) -> None:
        """Put every gradient through the chain, in place; `step` calls it."""
        for group in self.param_groups:
            self._check_group(group)
            grads = [p.grad for p in group["params"]]
            check_leaves(grads, flatten(grads)[1], "grads")
        new = [self._transform_group(group) for group in self.param_groups]
        for group, states in zip(self.param_groups, new, strict=True):
            if states:
                group[STATES] = states
        self._save_generators()

    @torch.no_grad()
    def _apply_post_step_transform_(self) -> None:
        """Put every parameter through the chain, in place; `step` calls it."""
        for group in self.param_groups:
            states = dict(group.get(STATES, {}))
            for stage in self._stages():
                if isinstance(stage, Slot):
                    for p in group["params"]:
                        self._call_hook(stage, "_post_step_transform_", p, group)
                else:
                    params = group["params"]
                    self._run(
                        stage, "parameter", group, params, params, group["param_ndim"], states
                    )
            if states:
                group[STATES] = states

    def _stages(self) -> list[Any]:
        """The chain as runs of links (lists) and members with hooks (slots)."""
        stages: list[Any] = []
        for slot in self._slots:
            if slot.link is None:
                stages.append(slot)
            elif stages and isinstance(stages[-1], list):
                stages[-1].append(slot)
            else:
                stages.append([slot])
        return stages

    def _transform_group(self, group: Group) -> dict[str, Any]:
        """The gradients of one group through the chain; returns the links' new states."""
        states = dict(group.get(STATES, {}))
        params, param_ndim = group["params"], group["param_ndim"]
        for stage in self._stages():
            if isinstance(stage, Slot):
                for p in params:
                    if p.grad is not None:
                        self._call_hook(stage, "_pre_step_transform_", p, group)
                continue
            grads = [p.grad for p in params]
            self._run(stage, "gradient", group, grads, params, param_ndim, states)
        if group["grad_scale"] != 1 or group["grad_bias"] != 0:
            grads = [p.grad for p in params]
            self._run([_SCALE_BIAS], "gradient", group, grads, params, param_ndim, {})
        return states

    def _run(
        self,
        slots: list[Slot],
        phase: Phase,
        group: Group,
        leaves: Leaves,
        params: list[Tensor],
        param_ndim: int | None,
        states: dict[str, Any],
    ) -> None:
        """Links of one phase over the leaves of one group, in place."""
        slots = [slot for slot in slots if slot.link is not None and slot.link.phase == phase]
        if not slots:
            return
        links = [slot.link for slot in slots if slot.link is not None]
        run = Run(flatten(leaves)[1], [*params], param_ndim, writable=[True] * len(leaves))
        values = [self._resolve(slot, group, run, states) for slot in slots]
        self._draw(slots, values, leaves, group)
        run.plain = is_plain([*leaves, *params], values)
        own = [states.get(slot.name, ()) for slot in slots]
        out, own = run_links(links, leaves, own, run, values, phase)
        for slot, state in zip(slots, own, strict=True):
            if state:
                states[slot.name] = state
        for p, old, new in zip(params, leaves, out, strict=True):
            if new is not old:  # the old one's elements share memory, so it could not be written
                if phase == "gradient":
                    p.grad = new
                else:
                    p.data = new  # type: ignore[assignment]

    def _call_hook(self, slot: Slot, name: str, param: Tensor, group: Group) -> None:
        """A user's hook on one parameter; a layout without a view is written back."""
        owner = slot.hooks or self
        if any(slot.keys[n] != n for n in slot.keys):  # it reads bare keys that others have too
            group = {**group, **{n: group[key] for n, key in slot.keys.items()}}
        batch = to_batch(param, group["param_ndim"])
        seen = batch.grad
        getattr(owner, name)(batch, optim_group=group)
        if batch.grad is not seen:
            raise ValueError(
                f"`{type(owner).__name__}.{name}` must modify `param.grad` in place  "
                "Got: another tensor, set as `param.grad`"
            )
        for target, result in ((param, batch), (param.grad, batch.grad)):
            if target is not None and result is not None and result.data_ptr() != target.data_ptr():
                target.copy_(result.reshape(target.shape))

    def _resolve(self, slot: Slot, group: Group, run: Run, states: dict[str, Any]) -> Group:
        """A slot's values for one step; starts the link's state and runs its schedules."""
        assert slot.link is not None
        values = slot.values(group)
        schedules = self._schedules_of(slot, group)
        if slot.generator is not None:
            values["dq"] = 0.0
        if slot.name not in states:
            state = slot.link.start(run.params or [], run, {**values, **schedules})
            if state:
                states[slot.name] = state
        for name, schedule in schedules.items():
            values[name] = group[slot.keys[name]] = schedule(states[slot.name]["step"])
        if schedules:
            slot.link.check_values(values)
        return values

    def _schedules_of(self, slot: Slot, group: Group) -> Group:
        if not any(self._schedules):
            return {}
        index = next((i for i, g in enumerate(self.param_groups) if g is group), None)
        found = {} if index is None else self._schedules[index]
        return {name: found[key] for name, key in slot.keys.items() if key in found}

    def _draw(self, slots: list[Slot], values: list[Group], leaves: Leaves, group: Group) -> None:
        """Draw the q of each tensor from the generators, tensor by tensor."""
        drawing = [i for i, slot in enumerate(slots) if slot.draws(group)]
        drawn: dict[int, list[Any]] = {i: [] for i in drawing}
        for leaf in leaves:
            for i in drawing:
                q, dq, generator = values[i]["q"], group[slots[i].keys["dq"]], slots[i].generator
                assert generator is not None
                u = torch.rand((), generator=generator, device=generator.device)
                drawn[i].append(None if leaf is None else draw_q(q, dq, u))
        for i in drawing:
            values[i]["q"] = drawn[i]

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
        with torch.no_grad():
            if closure is None:
                self._apply_pre_step_transform_()
                self.inner_opt.step()
                loss = None
            else:
                loss = self.inner_opt.step(self._create_closure(closure))
            self._apply_post_step_transform_()
        return loss

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

    def _save_generators(self) -> None:
        """Keep the states of explicit generators where checkpoints find them."""
        for slot in self._slots:
            own = slot.generator
            if own is None or own is torch.default_generator:
                continue
            if any(slot.draws(group) for group in self.param_groups):
                states = self.param_groups[0].setdefault(STATES, {})
                states[f"{slot.name}.generator"] = own.get_state()

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, and so of this one: they share it."""
        state: dict[str, Any] = self.inner_opt.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the next steps equal those of the saved optimizer.

        Args:
            state_dict: from `state_dict`, of this class or of rai-toolbox's. Hyperparameters it
                lacks keep their values.

        Raises:
            ValueError: other param groups, or a hyperparameter outside its interval.
        """
        state_dict = {**state_dict}
        saved = state_dict["param_groups"]
        if len(saved) == len(self.param_groups):
            merged = []
            for own, new in zip(self.param_groups, saved, strict=True):
                kept = {k: v for k, v in own.items() if k not in ("params", "param_names", STATES)}
                merged.append({**kept, **new})
                self._check_group({**merged[-1], "params": own["params"]})
            state_dict["param_groups"] = merged
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if STATES in group and group["params"]:
                group[STATES] = _moved(group[STATES], group["params"][0].device)
        states = self.param_groups[0].get(STATES, {})
        for slot in self._slots:
            if slot.generator is not None and f"{slot.name}.generator" in states:
                slot.generator.set_state(states[f"{slot.name}.generator"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.inner_opt.__setstate__(state)
        super().__setstate__(self.inner_opt.__getstate__())
        self._caches = {}
        for member in self.__dict__.get("_chain", ()):
            member.__setstate__(self.inner_opt.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inner_opt.__getstate__()
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        shared = ("defaults", "state", "param_groups", "_caches")
        own = {k: v for k, v in self.__dict__.items() if k not in shared}
        return _rebuild, (type(self), own)

    def __repr__(self) -> str:
        groups = self.param_groups
        shown = [{k: v for k, v in group.items() if k != STATES} for group in groups]
        self.param_groups = shown
        text = super().__repr__()
        self.param_groups = groups
        head = f"{type(self).__name__} ("
        return f"{self._label} [{type(self.inner_opt).__name__}](" + text[len(head) :]


class LinkMember(ParamTransformingOptimizer):
    """What stands in `_chain` for a pure link: it shares the chain's groups and state."""

    def __init__(self, slots: list[Slot], label: str, inner: Optimizer, defaults: Group) -> None:
        self._pure, self._text = slots, label
        super().__init__(InnerOpt=inner, defaults=defaults)

    def _links(self) -> list[Slot]:
        return self._pure

    @property
    def _label(self) -> str:
        return self._text


class ChainedParamTransformingOptimizer(ParamTransformingOptimizer):
    """A chain of transforms around an inner optimizer, as one optimizer.

    ``Opt1, ..., OptN`` transform each gradient as ``fN(...f1(grad))`` before ``InnerOpt.step()``
    and each parameter in the same order after it. Gradients are modified in place; `grad_scale`
    multiplies and `grad_bias` adds after all of them.

    Args:
        *transforming_optimizers: classes of `rai_chain.optim` or one's own, partials of them,
            links and chains, mixed.
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group; a link's own
            value wins.
        grad_scale: multiplies the transformed gradient. Per group.
        grad_bias: added to the transformed gradient, after the scale. Per group.
        defaults: default values of param-group keys; they win over the arguments.
        **inner_opt_kwargs: arguments of `InnerOpt`.

    Raises:
        TypeError: a member is no transform, or an argument has the wrong type.
        ValueError: a value outside its interval, an ambiguous key, a missing one, or
            `param_ndim` beyond a parameter's.

    Example:
        >>> import torch
        >>> from rai_chain import clamp, top_q
        >>> x = torch.ones(3, requires_grad=True)
        >>> optim = ChainedParamTransformingOptimizer(
        ...     top_q(q=0.33), clamp(clamp_max=2.8), params=[x], lr=1.0, param_ndim=None
        ... )
        >>> (torch.tensor([1.0, 2.0, 3.0]) * x).sum().backward()
        >>> optim.step()
        >>> x.grad
        tensor([0.0000, 2.0000, 2.8000])
        >>> x
        tensor([ 1.0000, -1.0000, -1.8000], requires_grad=True)

    Source: the class of the same name in rai-toolbox.
    """

    _chain: tuple[ParamTransformingOptimizer, ...] = ()

    def __init__(
        self,
        *transforming_optimizers: Any,
        params: Any = None,
        InnerOpt: Any = SGD,
        param_ndim: int | None = -1,
        grad_scale: float = 1,
        grad_bias: float = 0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        for place, member in enumerate(transforming_optimizers):
            if not builds(member, ParamTransformingOptimizer):
                _check_member(member, place)
        pure = [m for m in transforming_optimizers if isinstance(m, GradientTransformation)]
        links = sum((m.links for m in pure), ())
        check_order(links, link_names(links, (None,) * len(links)))
        steps = [link for link in links if link.phase == "step"]
        if steps:
            if InnerOpt is not SGD or inner_opt_kwargs:
                raise ValueError(
                    f"`InnerOpt` must be left out, as {steps[0]!r} steps  Got: {InnerOpt!r}"
                )
            InnerOpt = steps[0].as_optimizer()
        self._parts = transforming_optimizers
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            **inner_opt_kwargs,
        )

    def _members(self, params: Any) -> list[Slot]:
        """Build each member beside the shared groups, then let it share them."""
        chain, slots = [], []
        for place, part in enumerate(self._parts):
            aside = object.__new__(Optimizer)
            copies = [dict(group) for group in self.param_groups]
            state: Any = {"state": defaultdict(dict), "param_groups": copies}
            Optimizer.__setstate__(aside, {"defaults": dict(self.defaults), **state})
            own = {k: v for k, v in self.defaults.items() if k not in self._inner_keys}
            if builds(part, ParamTransformingOptimizer):
                member = part(params, InnerOpt=aside, defaults=own)
            else:
                pure = [s for s in slots_of_links(part, place) if s.link.phase != "step"]  # type: ignore[union-attr]
                for slot in pure:
                    own = {**slot.defaults, **own}
                label = " ○ ".join(s.link.name for s in pure[::-1])  # type: ignore[union-attr]
                member = LinkMember(pure, label, aside, own)
            slots += _slots_of_member(member, part)
            chain.append(member)
        del self._parts
        self._chain = tuple(chain)
        return slots

    def _lay_out(self, slots: list[Slot]) -> list[Slot]:
        seen: Counter[str] = Counter()
        for slot in slots:
            kind = type(slot.hooks).__name__ if slot.link is None else slot.link.name
            slot.name = slot.given or f"{kind}_{seen[kind]}"
            seen[kind] += slot.given is None
        counts = Counter(bare for slot in slots for bare in slot.bare.values())
        for slot in slots:
            slot.keys = {
                name: f"{slot.name}.{bare}"
                if counts[bare] > 1 or bare in self._inner_keys | _CHAIN_KEYS
                else bare
                for name, bare in slot.bare.items()
            }
        self._slots = slots
        for group in self.param_groups:
            self._refuse_ambiguous(group)
        self._refuse_ambiguous(self.defaults)
        for slot in slots:
            for name, key in slot.keys.items():
                if name not in slot.defaults:
                    continue
                value = self.defaults.setdefault(key, slot.defaults[name])
                for group in self.param_groups:
                    group.setdefault(key, value)
        for member in self._chain:
            member.inner_opt = self.inner_opt
            member.__setstate__(self.inner_opt.__getstate__())
        return slots

    @property
    def _label(self) -> str:
        return " ○ ".join(member._label for member in self._chain[::-1])


def _check_member(member: Any, place: int) -> None:
    try:
        as_links(member, place)
    except TypeError:
        raise TypeError(
            "`transforming_optimizers` must be classes of ParamTransformingOptimizer, partials of "
            f"them, or links  Got: {member!r} at place {place}"
        ) from None


def _slots_of_member(member: ParamTransformingOptimizer, part: Any) -> list[Slot]:
    """The slots of a finished member, with its values as defaults and its own scale and bias."""
    keywords = getattr(part, "keywords", {})
    slots = []
    for slot in member._slots:
        if slot.link is None and slot.hooks is None:
            known = member._inner_keys | _CHAIN_KEYS
            names = [k for k in member.defaults if k not in known]
            slot = Slot(None, {n: n for n in names}, hooks=member)
            slot.keys = slot.bare
        pure = isinstance(member, LinkMember)  # whose values are in its links
        for name, key in slot.keys.items():
            if not pure and key in member.defaults:
                slot.defaults[name] = member.defaults[key]
        if "param_ndim" in keywords and isinstance(slot.link, FunctionLink):
            slot.link = slot.link.with_rows(keywords["param_ndim"])
        slots.append(slot)
    if member._scale_bias != {"grad_scale": 1, "grad_bias": 0}:
        link = scale_bias(**member._scale_bias)
        slots.append(Slot(link, {n: n for n in link.values}, dict(link.values)))
    return slots


_SCALE_BIAS = slot_of(scale_bias)
_SCALE_BIAS.keys = _SCALE_BIAS.bare


def _moved(states: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The links' states on the device of the parameters; generators' states stay on the host."""
    leaves, spec = flatten(states)
    moved = [t.to(device) if isinstance(t, Tensor) else t for t in leaves]
    return {
        key: states[key] if key.endswith(".generator") else value
        for key, value in unflatten(moved, spec).items()
    }


def _rebuild(cls: Any, own: dict[str, Any]) -> ParamTransformingOptimizer:
    """An optimizer from its parts, for pickle and deepcopy."""
    optimizer: ParamTransformingOptimizer = cls.__new__(cls)
    optimizer.__dict__.update(own)
    optimizer.__setstate__(optimizer.inner_opt.__getstate__())
    return optimizer
