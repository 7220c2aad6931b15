"""Combinators: pipelines applied to some leaves."""

from collections.abc import Callable, Mapping
from typing import Any

from ..core.chain import chain
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper, by_phase, chosen_by
from ..data.hyper import show
from ..data.tree import Leaves, Spec, Tree, flatten
from ..engine.run import Run, State


class Masked(Wrapper):
    """See `masked`."""

    label = "masked"
    ticks = False

    def seen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        flags = chosen_by(self.options["mask"], leaves, spec, "mask", _is_flag)
        for flag in flags:
            if not _is_flag(flag):
                raise TypeError(f"`mask` must have bools as its leaves  Got: {flag!r}")
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
    flags = flatten(mask)[0]
    if mask is None or (not callable(mask) and not all(map(_is_flag, flags))):
        raise TypeError(f"`mask` must be a tree of bools or a function  Got: {mask!r}")
    return by_phase(Masked, {"": chain(inner)}, mask=mask)


class Partition(Wrapper):
    """See `partition`."""

    label = "partition"
    ticks = False

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
