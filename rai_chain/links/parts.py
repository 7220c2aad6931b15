"""Combinators: pipelines applied to some leaves."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper, by_phase
from ..data.choice import chosen_by
from ..data.hyper import show
from ..data.tree import Leaves, Spec, Tree, flatten
from ..engine.run import Run, State
from .transforms import identity


def looked_at(wrapper: Any, leaves: Leaves, run: Run) -> Leaves:
    """The leaves that what is inside of a wrapper looks at."""
    found: Leaves = [None] * len(leaves)
    for prefix, inner in wrapper.inners.items():
        mine, part = wrapper._part(prefix, leaves, run)
        for link in inner.links:
            own = link.looks_at(mine, part) if isinstance(link, Wrapper) else mine
            found = [a if b is None else b for a, b in zip(found, own, strict=True)]
    return found


class Masked(Wrapper):
    """See `masked`."""

    label = "masked"
    option: ClassVar[str] = "mask"
    ticks = False
    looks_at = looked_at

    def seen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        flags = chosen_by(self.options[self.option], leaves, spec, self.option, _is_flag)
        for flag in flags:
            if not _is_flag(flag):
                raise TypeError(f"`{self.option}` must have bools as its leaves  Got: {flag!r}")
        return list(map(bool, flags))

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        out, inside = self.through(leaves, state, run, values)
        pairs = zip(out, self.passed(leaves, run), strict=True)
        return [there if here is None else here for here, there in pairs], {"inner": {"": inside}}


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or value is None


def masked(
    inner: GradientTransformation, mask: Tree | Callable[[Any], Any]
) -> GradientTransformation:
    """Apply a transformation to some leaves only; the others pass, and get no state.

    Args:
        inner: any pipeline; it sees the caller's tree with None for the other leaves.
        mask: a tree of bools like the params or like the upper part of them, or a function: of
            a leaf's path, such as ``"layer.bias"``, to a bool, or of the tree to a tree. In an
            optimizer that was given names, the tree is a dict name -> parameter.

    Raises:
        TypeError: a leaf of the mask is no bool.
        ValueError: the mask is no tree like the params.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = masked(scale(0.0), {"w": True, "b": False})
        >>> g = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx.update(g, tx.init(g))[0]
        {'w': tensor([0., 0.]), 'b': tensor([1.])}

    Source: the function of the same name in optax.
    """
    _check_mask("mask", mask)
    return by_phase(Masked, {"": chain(inner)}, mask=mask)


def _check_mask(name: str, mask: Any) -> None:
    if mask is None or (not callable(mask) and not all(map(_is_flag, flatten(mask)[0]))):
        raise TypeError(f"`{name}` must be a tree of bools or a function  Got: {mask!r}")


class Selective(Masked):
    """See `selective_transform`."""

    label = "selective_transform"
    option = "freeze_mask"
    looks_at = Wrapper.looks_at  # it zeros what the inside does not see

    def seen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        return [not frozen for frozen in super().seen(prefix, leaves, spec)]

    def passed(self, leaves: Leaves, run: Run) -> Leaves:
        return self.idle(leaves, run)


class Freeze(Selective):
    """See `freeze`."""

    label = "freeze"
    option = "mask"

    def __repr__(self) -> str:
        return f"freeze({show(self.options['mask'])})"


def freeze(mask: Tree | Callable[[Any], Any]) -> GradientTransformation:
    """Zero some leaves, NaN too, so that behind an optimizer their parameters stay.

    What comes out is 0, and -0 behind a link whose result is an update to add: adding it changes
    no bit of any number. Links in front keep a state of the frozen leaves all the same; around
    them, `selective_transform` spares it.

    Args:
        mask: True for a leaf that is frozen; a tree or a function as in `masked`.

    Raises:
        TypeError: a leaf of the mask is no bool.
        ValueError: the mask is no tree like the params.

    Example:
        >>> import torch
        >>> tx, g = freeze({"w": True, "b": False}), {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx.update(g, tx.init(g))[0]
        {'w': tensor([0., 0.]), 'b': tensor([1.])}

    Source: the function of the same name in optax.
    """
    _check_mask("mask", mask)
    made: GradientTransformation = Freeze(identity(), mask=mask)
    return made


def selective_transform(
    optimizer: GradientTransformation, *, freeze_mask: Tree | Callable[[Any], Any]
) -> GradientTransformation:
    """Apply a transformation to some leaves; the others are frozen, and get no state.

    A frozen parameter keeps its bits, whatever its gradient: no weight decays, no constraint moves
    it. (Where `optimizer` has no link that makes updates to add, such as
    `scale_by_learning_rate`, the update of a frozen leaf is 0, to which a parameter -0 is 0.)

    Args:
        optimizer: any pipeline: all that moves parameters.
        freeze_mask: True for a leaf that is frozen; a tree or a function as in `masked`.

    Raises:
        TypeError: a leaf of the mask is no bool.
        ValueError: the mask is no tree like the params.

    Example:
        >>> import torch
        >>> from rai_chain import sgd
        >>> tx = selective_transform(sgd(0.5), freeze_mask={"w": True, "b": False})
        >>> p = {"w": torch.ones(2), "b": torch.ones(1)}
        >>> tx.step(p, p, tx.init(p))[0]
        {'w': tensor([1., 1.]), 'b': tensor([0.5000])}

    Source: the function of the same name in optax.
    """
    _check_mask("freeze_mask", freeze_mask)
    inner = chain(optimizer)
    if all(link.phase == "parameter" for link in inner.links):
        inner = chain(identity(), inner)  # gradients are stopped too
    return by_phase(Selective, {"": inner}, freeze_mask=freeze_mask)


class Partition(Wrapper):
    """See `partition`."""

    label = "partition"
    ticks = False
    looks_at = looked_at

    def __repr__(self) -> str:
        parts = ", ".join(f"{k[:-1]!r}: {t!r}" for k, t in self.inners.items())
        return f"partition({{{parts}}}, labels={show(self.options['labels'])})"

    def seen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        known = {own[:-1] for own in self.inners}
        labels = chosen_by(
            self.options["labels"], leaves, spec, "labels", lambda label: str(label) in known
        )
        for label, leaf in zip(labels, leaves, strict=True):
            if str(label) not in known and (label is not None or leaf is not None):
                raise ValueError(
                    f"`labels` must be among {', '.join(sorted(known))}  Got: {label!r}"
                )
        return [f"{label}." == prefix for label in labels]

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        out, inside = self.passed(leaves, run), {}
        for prefix in self.inners:
            part, inside[prefix] = self.through(leaves, state, run, values, prefix)
            out = [here if there is None else there for here, there in zip(out, part, strict=True)]
        return out, {"inner": inside}


def partition(
    transforms: Mapping[str, GradientTransformation], labels: Tree | Callable[[Any], Any]
) -> GradientTransformation:
    """Apply a transformation to each leaf according to its label.

    Args:
        transforms: label -> pipeline; its hyperparameters get the keys ``<label>.<name>``. Each
            sees the caller's tree with None for the leaves of other labels.
        labels: a tree of labels like the params or like the upper part of them, or a function:
            of a leaf's path, such as ``"layer.bias"``, to a label, or of the tree to a tree. In
            an optimizer that was given names, the tree is a dict name -> parameter.

    Raises:
        ValueError: no pipelines, a label without one, or no tree like the params.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = partition(
        ...     {"slow": scale(0.1), "fast": scale(2.0)},
        ...     lambda path: "slow" if "bias" in path else "fast",
        ... )
        >>> g = {"weight": torch.ones(2), "bias": torch.ones(1)}
        >>> tx.update(g, tx.init(g))[0]
        {'weight': tensor([2., 2.]), 'bias': tensor([0.1000])}

    Source: the function of the same name in optax.
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise ValueError(f"`transforms` must be a dict label -> pipeline  Got: {transforms!r}")
    if labels is None:
        raise TypeError("`labels` must be a tree of labels or a function  Got: None")
    return by_phase(Partition, {f"{k}.": chain(t) for k, t in transforms.items()}, labels=labels)


multi_transform = partition
