"""The stateful home: a pipeline around an inner optimizer, as one `torch.optim.Optimizer`."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch.optim import SGD, Optimizer

from ..core.link import FunctionLink, Link
from ..data.hyper import Flag
from ..data.messages import told
from ..data.rows import ParamNdim
from . import fast
from .apart import keep_apart, project
from .bound import Binding, Bound
from .checkpoint import Saved, rewound
from .declared import declared
from .drawn import DrawnTopQ
from .evaluation import Evaluation
from .hooks import HOOKS, HookMethods, hooks_of
from .inner import Aside, build, builds, grad_as_inner, numbers_of, restored, shares_groups
from .layout import Entry, Pipeline, lay_out
from .params import check_closure, check_defaults, complete, groups_of
from .states import STATES, Group
from .step import StepOptimizer
from .work import Work, again_of


@shares_groups
class ParamTransformingOptimizer(Saved, HookMethods, Evaluation, Binding, Optimizer):
    """An optimizer that transforms gradients before, and parameters after, another one's step.

    Subclass it and override `_pre_step_transform_` and `_post_step_transform_`, which work in
    place on one parameter as a batch (N, d0, ...); or name its `links`; or put links together,
    which needs no class, with `ChainedParamTransformingOptimizer`. `param_groups`, `defaults` and
    `state` are the inner optimizer's own.

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
        **inner_opt_kwargs: arguments of `InnerOpt`; a number may be a schedule.

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

    links: ClassVar[tuple[Any, ...]] = ()  # factories of links, for a class of one's own
    takes: ClassVar[str]  # the arguments besides params and InnerOpt, in order, see `declared`
    fixed: ClassVar[Group] = {"center": None, "at_least": 0}  # what is no param-group key
    inner_opt: Optimizer
    _chain: "tuple[ParamTransformingOptimizer, ...]"
    _entries: list[Entry]
    _running: list[Entry]  # the entries, or the hooks of a class that overrides them
    _keyed: Pipeline  # of the entries
    _owner: Any = None  # a weak reference to the chain that this is a member of
    _graphs: dict[Any, Any] | None  # of `compile`; None where it has been given up
    _pending: list[Work] | None = None  # the step that is being taken
    _shared: frozenset[str] = frozenset()
    _step_keys: Mapping[str, str] = MappingProxyType({})  # qualified keys of a link that steps
    _qualifies: bool = False  # whether a key that several read gets a name for each of them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "takes" in cls.__dict__:
            cls.__init__ = declared(cls)  # type: ignore[method-assign]

    def __init__(
        self,
        params: Any = None,
        InnerOpt: Any = SGD,
        *,
        param_ndim: ParamNdim = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        compile: bool = False,
        **inner_opt_kwargs: Any,
    ) -> None:
        Flag().check("compile", compile)
        self._compile, self._pipeline, self._bounds, self._graphs = compile, Pipeline(), {}, {}
        self._chain = ()
        own = {"param_ndim": param_ndim, "grad_scale": grad_scale, "grad_bias": grad_bias}
        for name in [n for _, names in self._declared() for n in names]:
            if name in inner_opt_kwargs:
                own[name] = inner_opt_kwargs.pop(name)
        check_defaults(defaults)
        values = {**own, **(defaults or {})}
        if builds(InnerOpt, Optimizer):
            if params is None:
                raise TypeError("`params` must be given with an optimizer type  Got: None")
            groups = groups_of(params)
            complete(groups, values)
            self.inner_opt, scheduled = build(InnerOpt, groups, inner_opt_kwargs)
            self._settle(params, {**values, **scheduled}, tuple(scheduled), defaults or {})
        elif isinstance(InnerOpt, Optimizer):
            with restored([InnerOpt.defaults, *InnerOpt.param_groups]):
                complete(InnerOpt.param_groups, values)
                self.inner_opt = InnerOpt
                self._settle(params, values, (), defaults or {})
        else:
            raise TypeError(
                f"`InnerOpt` must be an optimizer type or instance  Got: {told(InnerOpt)}"
            )

    def _settle(self, params: Any, values: Group, scheduled: tuple[str, ...], given: Group) -> None:
        """Lay out the links beside the inner optimizer, and refuse what does not fit."""
        Optimizer.__setstate__(self, {})  # torch's own attributes
        inner_keys = frozenset(self.inner_opt.defaults)
        numbers = numbers_of(self.inner_opt)
        self.defaults.update(values)
        self._inner_keys = inner_keys
        self._entries = self._members(params)
        below = _below(self.inner_opt)
        lay = functools.partial(
            lay_out,
            below=below,
            inner_keys=inner_keys,
            qualify=self._qualifies,
            shared=self._shared,
            step_keys=self._step_keys,
        )
        self._pipeline = self._keyed = lay(self._entries, scheduled=scheduled)
        self._running = self._entries
        self._default(self._keyed)
        if isinstance(self.inner_opt, Aside):
            return
        if self._overrides_hooks():
            self._running = [hooks_of(self)]
            self._pipeline = lay(self._running, scheduled=scheduled)
            self._default(self._pipeline)
        self._pipeline.label = self._label
        self._pipeline.numbers = numbers
        if isinstance(self.inner_opt, Binding):
            self.inner_opt._pipeline.known = None  # it cannot know the keys of what is around it
        known = self._pipeline.known
        for key in sorted(given.keys() - known if known else ()):
            self._pipeline.warn(key, always=True)
        bounds = self._bind()
        if self._compile:
            fast.check_compile(self, bounds)

    def _default(self, pipeline: Pipeline) -> None:
        """Give each group the default values of what it has no value for."""
        values = {k: self.defaults.setdefault(k, v) for k, v in pipeline.defaults().items()}
        complete(self.param_groups, values)

    # ------------------------------------------------------------------ what is in the chain

    def _overrides_hooks(self) -> bool:
        """Whether this is a user's class with hooks of its own."""
        base = ParamTransformingOptimizer
        return any(getattr(type(self), h) is not getattr(base, h) for h in HOOKS.values())

    def _own(self) -> list[tuple[Link, dict[str, str]]]:
        """The links of this class, each with hyperparameter -> param-group key."""
        mine = {id(entry.link) for entry in self._entries}
        rows = zip(self._keyed.links, self._keyed.keys, strict=True)
        return [(link, own) for link, own in rows if id(link) in mine]

    def _declared(self) -> list[tuple[Any, tuple[str, ...]]]:
        """The factories of `links`, each with the hyperparameters that are param-group keys."""
        return [
            (made, tuple(n for n in made.definition.rules if n not in self.fixed))
            for made in self.links
        ]

    def _members(self, params: Any) -> list[Entry]:
        """The links of this class, with its defaults."""
        entries = []
        for factory, names in self._declared():
            fixed = {k: v for k, v in self.fixed.items() if k in factory.definition.rules}
            usual = inspect.signature(factory).parameters
            values = {n: self.defaults.get(n, usual[n].default) for n in names} | fixed
            if "dq" in names:
                entries.append(Entry(DrawnTopQ(values, getattr(self, "_generator", None)), names))
            else:
                entries.append(Entry(FunctionLink(factory, values, check=False), names))
        return entries

    @property
    def _label(self) -> str:
        return type(self).__name__

    _title = _label  # in the repr

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group; what it does not give it takes from `defaults`.

        Args:
            param_group: ``params`` and any hyperparameter of the chain or the inner optimizer.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value outside its interval, an ambiguous key, or a missing one.
        """
        if owner := self._owner and self._owner():
            owner.add_param_group(param_group)
            return
        bound = self._read_new(param_group)
        if self._compile:
            fast.check_compile(self, [bound])
        self._bounds[id(param_group)] = Bound(self._pipeline, param_group)
        self.inner_opt.add_param_group(param_group)
        self._bind()

    # ------------------------------------------------------------------ the step

    @fast.quick
    @grad_as_inner
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Transform the gradients, step the inner optimizer, transform the parameters.

        Args:
            closure: evaluates the model and returns the loss; the inner optimizer may call it
                several times, and each time the gradients it leaves are transformed.

        Returns:
            The inner optimizer's loss, or None without a closure.

        Raises:
            TypeError, ValueError: a gradient or a hyperparameter that does not fit; nothing
                has been written then. Where a link, a hook or the inner step raises later, the
                gradients may have been written, but no parameter and no state; where a
                parameter link of one's own does, the inner step has been taken.
        """
        check_closure(closure)
        bounds = None if closure is not None else self._bind()
        if bounds is not None and fast.direct(self, bounds):
            return None
        loss, self._pending = None, None
        with rewound(self._pipeline):
            if closure is not None and not self._compile:
                loss = fast.bare_step(self.inner_opt)(self._create_closure(closure))
            else:
                if closure is not None:
                    with torch.enable_grad():
                        loss = closure()
                work = self._enter(bounds)
                if not (self._compile and fast.compiled_step(self, work)):
                    self._transform(work, loss, closure)
                    fast.bare_step(self.inner_opt)()
                self._pending = work
        self._finish()
        return loss

    def _create_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def transformed() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._transform_new(loss, closure)
            return loss

        return transformed

    @grad_as_inner  # the inner optimizer calls its closure with autograd on
    def _transform_new(self, loss: Any, closure: Any) -> None:
        self._transform(self._enter(), loss, closure)

    def _enter(self, bounds: Sequence[Bound] | None = None) -> list[Work]:
        """Each group with its gradients, states and values; what can be refused is, here."""
        bounds, before = bounds or self._bind(), self._pending
        if isinstance(self.inner_opt, Binding):
            self.inner_opt._bind()
        work = [Work(bound, [p.grad for p in bound.params]) for bound in bounds]
        for one in work:
            one.bound.check_grads(one.leaves)
        for i, one in enumerate(work):
            one.prepare(self.state, before[i] if before else None)
        keep_apart([(one.bound, one.leaves) for one in work])
        return work

    def _transform(self, work: list[Work], loss: Any = None, closure: Any = None) -> None:
        """Put every gradient through the links, in place."""
        self._pending = work
        inner = self.inner_opt if isinstance(self.inner_opt, StepOptimizer) else None
        again = again_of(closure, self.param_groups)
        for one in work:
            one.ask(loss, again, self._pipeline, *([inner._pipeline] if inner else []))
        if inner is not None:
            inner._given = {id(one.bound.group): one.extra for one in work}
        for one in work:
            one.through("gradient", one.leaves)

    def _finish(self) -> None:
        """Put every parameter through the links, in place, and keep what they keep."""
        work = self._pending or []
        project(work)
        for one in work:
            one.commit(self.state)
        self._pending = None

    @torch.no_grad()
    def _apply_pre_step_transform_(self) -> None:
        """Put every gradient through the chain, in place, as `step` does."""
        self._pending = None
        with rewound(self._pipeline):
            self._transform(self._enter())

    @torch.no_grad()
    def _apply_post_step_transform_(self) -> None:
        """Put every parameter through the chain, in place, as `step` does."""
        if self._pending is None:
            self._pipeline.check_alone()
            self._pending = [Work(bound, [None] * len(bound.params)) for bound in self._bind()]
            for one in self._pending:
                one.prepare(self.state)
        self._finish()

    def project(self) -> None:
        """Put every parameter through the chain; deprecated, as in rai-toolbox."""
        warnings.warn(
            FutureWarning("`project` is deprecated: use `_apply_post_step_transform_`"),
            stacklevel=2,
        )
        self._apply_post_step_transform_()

    def __repr__(self) -> str:
        text = f"{self._title} [{type(self.inner_opt).__name__}]("
        for i, group in enumerate(self.param_groups):
            shown = sorted(group.keys() - {"params", STATES})
            lines = [f"    {key}: {group[key]}\n" for key in shown]
            text += f"\nParameter Group {i}\n" + "".join(lines)
        return text + ")"


def _below(inner: Optimizer) -> list[Entry]:
    """The links of the inner optimizers that have some, the innermost first."""
    if not isinstance(inner, ParamTransformingOptimizer):
        return []
    return [*_below(inner.inner_opt), *inner._running]
