"""Several transforms as one optimizer: classes, partials of them and pure links, mixed."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from ..core.chain import as_links, check_order, link_names
from ..core.link import UNSET, FunctionLink
from ..core.pipeline import Link
from ..links.descent import add_updates, descend_and_decay, scale_by_learning_rate
from ..links.from_torch import FromTorch
from ..links.transforms import scale_bias
from .adapter import Aside, ParamTransformingOptimizer, builds
from .slots import (
    CHAIN_KEYS,
    Group,
    Hooks,
    Slot,
    evaluated,
    group_keys,
    has_schedule,
    scales,
    slots_of_links,
)
from .step import StepOptimizer


class LinkMember(ParamTransformingOptimizer):
    """What stands in `_chain` for a pure link: it shares the chain's groups and state."""

    def __init__(self, slots: list[Slot], inner: Optimizer) -> None:
        self._pure = slots
        super().__init__(InnerOpt=inner)

    def _links(self) -> list[Slot]:
        return self._pure

    @property
    def _label(self) -> str:
        return " ○ ".join(slot.link.name for slot in self._pure[::-1])


class ChainedParamTransformingOptimizer(ParamTransformingOptimizer):
    """A chain of transforms around an inner optimizer, as one optimizer.

    ``Opt1, ..., OptN`` transform the gradient as ``fN(...f2(f1(grad)))`` before
    ``InnerOpt.step()``, and the parameter in the same order after it. Gradients are modified in
    place; `grad_scale` multiplies and `grad_bias` adds after all of them. `param_groups`,
    `defaults` and `state` are the same objects in the chain, its members and the inner optimizer.

    Each hyperparameter can be set per param group, as a number, a tensor or a schedule
    ``step -> value``. One that two members have, or a member and `InnerOpt`, gets a key for each
    member: ``<link or class>_<i>.<name>``.

    Args:
        *transforming_optimizers: classes of `rai_chain.optim` or one's own, partials of them,
            links and chains, mixed.
        params: parameters, or dicts that define param groups.
        InnerOpt: a torch optimizer class, a partial of one, or an instance.
        param_ndim: dimensions of one row, see `rai_chain.to_batch`. Per group; a member's own
            value wins.
        grad_scale: multiplies the transformed gradient. Per group.
        grad_bias: added to the transformed gradient, after the scale. Per group.
        defaults: default values of param-group keys; they win over the arguments.
        compile: make the whole step one compiled graph, see `ParamTransformingOptimizer`.
        **inner_opt_kwargs: arguments of `InnerOpt`.

    Raises:
        TypeError: a member is no transform, or an argument has the wrong type.
        ValueError: a value outside its interval, an ambiguous key, a missing one, or
            `param_ndim` beyond a parameter's.

    Example:
        >>> from functools import partial
        >>> from torch import ones, tensor
        >>> from rai_chain.optim import ClampedGradientOptimizer, TopQGradientOptimizer
        >>> x1 = ones(3, requires_grad=True)
        >>> optim = ChainedParamTransformingOptimizer(
        ...     partial(TopQGradientOptimizer, q=0.33),
        ...     partial(ClampedGradientOptimizer, clamp_max=2.8),
        ...     params=[x1],
        ...     lr=1.0,
        ...     param_ndim=None,
        ... )
        >>> optim
        ClampedGradientOptimizer ○ TopQGradientOptimizer [SGD](
        Parameter Group 0
            clamp_max: 2.8
            clamp_min: None
            dampening: 0
            differentiable: False
            dq: 0.0
            foreach: None
            fused: None
            grad_bias: 0
            grad_scale: 1
            lr: 1.0
            maximize: False
            momentum: 0
            nesterov: False
            param_ndim: None
            q: 0.33
            weight_decay: 0
        )
        >>> (tensor([1.0, 2.0, 3.0]) * x1).sum().backward()
        >>> optim.step()
        >>> x1.grad
        tensor([0.0000, 2.0000, 2.8000])
        >>> x1
        tensor([ 1.0000, -1.0000, -1.8000], requires_grad=True)
        >>> x2 = ones(2, 3, requires_grad=True)
        >>> optim.add_param_group(dict(params=x2, param_ndim=1, q=0.64))
        >>> optim.zero_grad()
        >>> (tensor([1.0, 2.0, 3.0]) * (x1 + x2)).sum().backward()
        >>> optim.step()
        >>> x1.grad
        tensor([0.0000, 2.8000, 2.8000])
        >>> x2.grad
        tensor([[0.0000, 0.0000, 2.8000],
                [0.0000, 0.0000, 2.8000]])

        Links need no class:

        >>> from rai_chain import clamp, top_q
        >>> optim = ChainedParamTransformingOptimizer(
        ...     top_q(q=0.33), clamp(clamp_max=2.8), params=[ones(3, requires_grad=True)]
        ... )

    Source: the class of the same name in rai-toolbox.
    """

    _parts: tuple[Any, ...]
    _scheduled: Group  # the schedules of `from_torch`, by param-group key

    def __init__(
        self,
        *transforming_optimizers: Any,
        params: Any = None,
        InnerOpt: Any = SGD,
        param_ndim: int | None = -1,
        grad_scale: float = 1,
        grad_bias: float = 0,
        defaults: dict[str, Any] | None = None,
        compile: bool = False,
        **inner_opt_kwargs: Any,
    ) -> None:
        self._parts, self._scheduled = transforming_optimizers, {}
        for link, name in zip(*_links_of(transforming_optimizers), strict=True):
            if link.phase == "step":
                if InnerOpt is not SGD or inner_opt_kwargs:
                    given = ", ".join(inner_opt_kwargs) or repr(InnerOpt)
                    raise ValueError(
                        f"`InnerOpt` and its arguments must be left out, as {link!r} steps  "
                        f"Got: {given}"
                    )
                InnerOpt, self._scheduled = _inner_of(link, name)
                defaults = {**self._scheduled, **(defaults or {})}
        if InnerOpt is SGD and any(map(descends, _links_of(transforming_optimizers)[0])):
            if not inner_opt_kwargs:
                InnerOpt = partial(StepOptimizer, link=add_updates(), keys={})
            elif not inner_opt_kwargs.get("maximize"):
                raise ValueError(
                    "`maximize` must be True in an `InnerOpt` behind links that make updates to "
                    f"add; without `InnerOpt` and its arguments they are added  Got: "
                    f"{', '.join(inner_opt_kwargs)}"
                )
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            compile=compile,
            **inner_opt_kwargs,
        )

    def _members(self, params: Any) -> list[Slot]:
        """Build each member beside the shared groups, then let it share them."""
        chain: list[ParamTransformingOptimizer] = []
        slots: list[Slot] = []
        for place, part in enumerate(self._parts):
            aside = Aside([dict(group) for group in self.param_groups])
            if builds(part, ParamTransformingOptimizer):
                member = part(params, InnerOpt=aside, defaults={})
            elif pure := slots_of_links(part, place):
                member = LinkMember(pure, aside)
            else:
                continue
            slots += _slots_of_member(member, getattr(part, "keywords", {}))
            chain.append(member)
        del self._parts
        self._chain = tuple(chain)
        return slots

    def _lay_out(self, slots: list[Slot]) -> list[Slot]:
        super()._lay_out(slots)
        reserved = self._inner_keys | CHAIN_KEYS
        counts = Counter(bare for slot in slots for bare in slot.bare.values())
        for slot in slots:
            for name, bare in slot.bare.items():
                shared = counts[bare] > 1 or bare in reserved
                slot.keys[name] = f"{slot.name}.{bare}" if shared else bare
        keys = [key for slot in slots for key in slot.keys.values()]
        mistakable = {key for s in slots for b in s.answers for key in (b, f"{s.name}.{b}")}
        self._refused = sorted(mistakable - reserved - set(keys))
        self._watch(slots, self._scheduled)
        for slot in slots:
            for name, key in slot.keys.items():
                if name not in slot.defaults:
                    continue
                value = self.defaults.setdefault(key, slot.defaults[name])
                for group in self.param_groups:
                    group.setdefault(key, value)
        for member in self._chain:
            member.inner_opt, member._owner = self.inner_opt, self
            member.__setstate__(self.inner_opt.__getstate__())
        return slots

    @property
    def _title(self) -> str:
        return " ○ ".join(member._label for member in self._chain[::-1])


def _slots_of_member(member: ParamTransformingOptimizer, keywords: Group) -> list[Slot]:
    """The slots of a finished member, with its values as defaults and its own scale and bias."""
    rows = keywords.get("param_ndim", UNSET)
    slots = member._slots
    if member._running is not slots:
        names = {key for slot in slots for key in slot.keys.values()} | member.defaults.keys()
        names -= CHAIN_KEYS | member._inner_keys
        slots = [Slot(Hooks(member, "gradient", names, rows), {n: n for n in names})]
    for slot in slots:
        if rows is not UNSET and isinstance(slot.link, FunctionLink):
            slot.link = slot.link.with_rows(rows)
        for name, key in slot.keys.items():
            if key in member.defaults and key not in CHAIN_KEYS:
                slot.defaults[name] = member.defaults[key]
    if scales(member.defaults):
        own = scale_bias(member.defaults["grad_scale"], member.defaults["grad_bias"])
        slots = [*slots, *slots_of_links(own)]
    return slots


def _links_of(parts: Sequence[Any]) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """The pure links of a chain and their names; refuses what cannot be in one."""
    links: tuple[Link, ...] = ()
    given: tuple[str | None, ...] = ()
    for place, part in enumerate(parts):
        if builds(part, ParamTransformingOptimizer):
            continue
        try:
            own = as_links(part, place)
        except TypeError:
            raise TypeError(
                "`transforming_optimizers` must be classes of ParamTransformingOptimizer, "
                f"partials of them, or links  Got: {part!r} at place {place}"
            ) from None
        links += own
        given += getattr(part, "given", (None,) * len(own))
    names = link_names(links, given)
    check_order(links, names)
    return links, names


def descends(link: Link) -> bool:
    """Whether what a link returns is an update to add, as a native optimizer's is."""
    inside = [k for inner in getattr(link, "inners", {}).values() for k in inner.links]
    makers = (scale_by_learning_rate, descend_and_decay)
    return getattr(link, "factory", None) in makers or any(map(descends, inside))


def _inner_of(step: Link, name: str) -> tuple[Any, Group]:
    """The inner optimizer that a link is, and the schedules that it cannot run itself."""
    if isinstance(step, FromTorch):
        schedules = {key: value for key, value in step.options.items() if has_schedule(value)}
        first = evaluated(schedules, torch.zeros((), dtype=torch.int64))
        return partial(step.kind, **{**step.options, **first}), schedules
    keys = {n: f"{name}.{n}" if n in CHAIN_KEYS else n for n in group_keys(step)}
    return partial(StepOptimizer, link=step, keys=keys), {}
