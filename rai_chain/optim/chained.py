"""Several transforms as one optimizer: classes, partials of them and pure links, mixed."""

from functools import partial
from typing import Any

import torchopt.base
from torch import Tensor
from torch.optim import SGD, Optimizer

from ..core.chain import as_links, check_order, link_names
from ..core.link import FunctionLink, Link
from ..core.pipeline import MAKERS, GradientTransformation
from ..data.rows import UNSET, ParamNdim
from ..links.descent import add_updates
from ..links.from_torch import FromTorch
from ..links.transforms import scale_bias
from .adapter import ParamTransformingOptimizer
from .hooks import hooks_of
from .inner import Aside, builds
from .layout import OWN, Entry
from .states import Group
from .step import StepOptimizer


class LinkMember(ParamTransformingOptimizer):
    """What stands in `_chain` for a pure pipeline: it shares the chain's groups and state."""

    def __init__(self, entries: list[Entry], inner: Optimizer) -> None:
        self._pure = entries
        super().__init__(InnerOpt=inner)

    def _members(self, params: Any) -> list[Entry]:
        return self._pure

    @property
    def _label(self) -> str:
        return " ○ ".join(entry.link.name for entry in self._pure[::-1])


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
        params: parameters, or dicts that define param groups; the last positional argument
            where they are not given by name.
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
    _qualifies = True

    def __init__(
        self,
        *transforming_optimizers: Any,
        params: Any = None,
        InnerOpt: Any = SGD,
        param_ndim: ParamNdim = -1,
        grad_scale: float = 1,
        grad_bias: float = 0,
        defaults: dict[str, Any] | None = None,
        compile: bool = False,
        **inner_opt_kwargs: Any,
    ) -> None:
        if params is None and transforming_optimizers and _are_params(transforming_optimizers[-1]):
            *parts, params = transforming_optimizers  # as code calls it that was given a partial
            transforming_optimizers = tuple(parts)
        self._parts = transforming_optimizers
        links = _links_of(transforming_optimizers)
        self._shared = frozenset().union(*(getattr(p, "shared", ()) for p in self._parts))
        for link, name in links:
            if link.phase == "step":
                if InnerOpt is not SGD or inner_opt_kwargs:
                    given = ", ".join(inner_opt_kwargs) or repr(InnerOpt)
                    raise ValueError(
                        f"`InnerOpt` and its arguments must be left out, as {link!r} steps  "
                        f"Got: {given}"
                    )
                if isinstance(link, FromTorch):
                    InnerOpt, inner_opt_kwargs = link.kind, dict(link.options)
                    self._step_keys = {f"{name}.{n}": n for n in link.values if n not in OWN}
                else:
                    others = {n for other, _ in links if other is not link for n in other.values}
                    others -= self._shared
                    keys = {n: f"{name}.{n}" if n in others | OWN else n for n in link.values}
                    InnerOpt = partial(StepOptimizer, link=link, keys=keys, name=name)
                    self._step_keys = {f"{name}.{n}": key for n, key in keys.items()}
        if InnerOpt is SGD and any(link.updates for link, _ in links):
            if not inner_opt_kwargs:
                InnerOpt = partial(StepOptimizer, link=add_updates(), name=ADDS)
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

    def _members(self, params: Any) -> list[Entry]:
        """Build each member beside the shared groups, then let it share them."""
        chain: list[ParamTransformingOptimizer] = []
        entries: list[Entry] = []
        for place, part in enumerate(self._parts):
            aside = Aside([dict(group) for group in self.param_groups])
            if builds(part, ParamTransformingOptimizer):
                member = part(params, InnerOpt=aside, defaults={})
                entries += _entries_of(member, getattr(part, "keywords", {}))
            elif pure := _pure_entries(part, place):
                member = LinkMember(pure, aside)
                entries += pure
            else:
                continue
            chain.append(member)
        del self._parts
        self._chain = tuple(chain)
        self._adopt()
        return entries

    @property
    def _title(self) -> str:
        return " ○ ".join(member._label for member in self._chain[::-1])


ADDS = ".adds"  # the name of the link that adds updates where there is no inner optimizer


def _pure_entries(part: Any, place: int = 0) -> list[Entry]:
    """The entries of a pure pipeline; a link that steps is none."""
    links = as_links(part, place)
    given = getattr(part, "given", (None,) * len(links))
    rows = zip(links, given, strict=True)
    return [Entry(link, tuple(link.values), name) for link, name in rows if link.phase != "step"]


def _entries_of(member: ParamTransformingOptimizer, keywords: Group) -> list[Entry]:
    """The entries of a finished member, with its own rows, scale and bias."""
    rows = keywords.get("param_ndim", UNSET)
    entries = member._entries
    if member._overrides_hooks():
        entries = [hooks_of(member, rows)]
    elif rows is not UNSET:
        entries = [
            e._replace(link=e.link.with_rows(rows)) if isinstance(e.link, FunctionLink) else e
            for e in entries
        ]
    scale, bias = member.defaults["grad_scale"], member.defaults["grad_bias"]
    if isinstance(scale, Tensor) or isinstance(bias, Tensor) or scale != 1 or bias != 0:
        entries = [*entries, *_pure_entries(scale_bias(scale, bias))]
    return entries


def _links_of(parts: tuple[Any, ...]) -> list[tuple[Link, str]]:
    """The pure links of a chain and their names; refuses what cannot be in one."""
    links: tuple[Link, ...] = ()
    given: tuple[str | None, ...] = ()
    late: tuple[Link, ...] = ()
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
        if getattr(part, "sorts", False):  # its parameter link goes to the end
            own, late = own[:1], (*late, *own[1:])
            links, given = (*links, *own), (*given, None)
            continue
        links += own
        given += getattr(part, "given", (None,) * len(own))
    links, given = (*links, *late), (*given, *(None for _ in late))
    names = link_names(links, given)
    check_order(links, names)
    return list(zip(links, names, strict=True))


def _are_params(value: Any) -> bool:
    """Whether an argument is parameters rather than a transform."""
    if isinstance(value, (torchopt.base.GradientTransformation, type, partial)):
        return False
    return isinstance(value, Tensor) or hasattr(value, "__iter__")


def _optimizer(
    tx: GradientTransformation,
    params: Any,
    *,
    param_ndim: ParamNdim = -1,
    defaults: dict[str, Any] | None = None,
    compile: bool = False,
    **values: Any,
) -> ChainedParamTransformingOptimizer:
    """See `GradientTransformation.optimizer`."""
    tx = tx.replace(**values)
    steps = any(link.phase == "step" for link in tx.links)
    adds: Any = {} if steps else {"InnerOpt": partial(StepOptimizer, link=add_updates(), name=ADDS)}
    return ChainedParamTransformingOptimizer(
        tx, params=params, param_ndim=param_ndim, defaults=defaults, compile=compile, **adds
    )


MAKERS["optimizer"] = _optimizer
