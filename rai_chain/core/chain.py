"""Joining links into pipelines."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torchopt.base
from torch import Tensor

from ..data.tree import flatten
from ..engine.run import PHASES
from .foreign import Foreign
from .link import Link
from .pipeline import GradientTransformation


class Chain(GradientTransformation):
    """A row of links, applied from left to right: made by `chain` and `named_chain`."""

    given: tuple[str | None, ...]

    def __new__(
        cls,
        links: tuple[Link, ...],
        given: tuple[str | None, ...],
        shared: frozenset[str] = frozenset(),
    ) -> "Chain":
        self: Chain = super().__new__(cls)
        self.links, self.given, self.shared = links, given, shared
        self.names = link_names(links, given)
        check_order(links, self.names)
        check_shared(shared, links)
        return self

    def __repr__(self) -> str:
        named = any(self.given)
        parts = [
            f"({name!r}, {link!r})" if named else repr(link)
            for name, link in zip(self.names, self.links, strict=True)
        ]
        if self.shared:
            parts.append(f"shared={tuple(sorted(self.shared))!r}")
        head = "named_chain" if named else "chain"
        line = f"{head}({', '.join(parts)})"
        if len(line) <= 88:
            return line
        return f"{head}(\n" + "".join(f"    {part},\n" for part in parts) + ")"

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.links, self.given, self.shared)

    def with_links(self, links: tuple[Any, ...]) -> GradientTransformation:
        return Chain(links, self.given, self.shared)


def link_names(links: tuple[Link, ...], given: tuple[str | None, ...]) -> tuple[str, ...]:
    """The name of each link in qualified keys: the given one, else ``<factory>_<count>``."""
    seen: Counter[str] = Counter()
    names = []
    for link, name in zip(links, given, strict=True):
        if name is None:
            name = f"{link.name}_{seen[link.name]}"
            seen[link.name] += 1
        names.append(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"`name` must be used once in a chain  Got: {twice[0]!r} twice")
    return tuple(names)


def check_order(links: tuple[Link, ...], names: tuple[str, ...]) -> None:
    """Refuse a link behind one of a later phase, and a second link that steps."""
    for i in range(1, len(links)):
        before, after = links[i - 1], links[i]
        if after.reduces:
            raise ValueError(
                f"`{names[i]}` must be the first link, as it takes one gradient for each example  "
                f"Got: place {i}, behind `{names[i - 1]}`"
            )
        if PHASES.index(after.phase) < PHASES.index(before.phase):
            raise ValueError(
                f"`{names[i]}` must come before every {before.phase} link, as it is a "
                f"{after.phase} link  Got: place {i}, behind `{names[i - 1]}` at place {i - 1}"
            )
        if before.phase == after.phase == "step":
            raise ValueError(
                f"`{names[i]}` must be the only link that steps  Got: `{names[i - 1]}` before it"
            )


def check_shared(shared: Iterable[str], links: tuple[Link, ...]) -> None:
    """Refuse a shared key that no two links have, or that has two values."""
    for key in shared:
        values = [link.values[key] for link in links if key in link.values]
        if not values:
            raise ValueError(f"`shared` must name hyperparameters of the links  Got: {key!r}")
        if any(v is not values[0] and not _equal(v, values[0]) for v in values[1:]):
            raise ValueError(f"`{key}` must have one value, as it is shared  Got: {values}")


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are the same number or numbers; a tensor is only itself."""
    return not any(isinstance(leaf, Tensor) for leaf in flatten([a, b])[0]) and bool(a == b)


def as_links(transformation: Any, place: int = 0) -> tuple[Link, ...]:
    """The links of one argument of `chain`."""
    if isinstance(transformation, GradientTransformation):
        return transformation.links
    if isinstance(transformation, torchopt.base.GradientTransformation):
        return (Foreign(transformation),)
    raise TypeError(
        "`chain` must get gradient transformations of rai_chain or TorchOpt  "
        f"Got: {transformation!r} at place {place}"
    )


def joined(transformations: Iterable[Any], shared: Iterable[str] = ()) -> Chain:
    """The chain of transformations; what a wrapper does to parameters goes to its end."""
    links: list[Link] = []
    given: list[str | None] = []
    late: list[tuple[Link, str | None]] = []
    for place, part in enumerate(transformations):
        own = as_links(part, place)
        names = getattr(part, "given", (None,) * len(own))
        shared = [*shared, *getattr(part, "shared", ())]
        for link, name in zip(own, names, strict=True):
            if getattr(part, "sorts", False) and link.phase == "parameter":
                late.append((link, name))
            else:
                links.append(link)
                given.append(name)
    links += [link for link, _ in late]
    given += [name for _, name in late]
    return Chain(tuple(links), tuple(given), frozenset(shared))


def chain(
    *transformations: torchopt.base.GradientTransformation, shared: tuple[str, ...] = ()
) -> GradientTransformation:
    """Compose transformations from left to right.

    Args:
        *transformations: links, chains (flattened), and TorchOpt's transformations. Gradient
            links first, then at most one link that steps, then parameter links.
        shared: names of hyperparameters that several links have and that are one: one key for
            all of them.

    Returns:
        A `GradientTransformation` whose state is the list of its links' states. A
        hyperparameter that two links have gets the keys ``<factory>_<i>.<name>``.

    Raises:
        TypeError: an argument is no gradient transformation.
        ValueError: a gradient link behind a parameter link, or a shared name that is not.

    Example:
        >>> import torch
        >>> from rai_chain import chain, clamp, top_q
        >>> tx = chain(top_q(q=0.33, param_ndim=None), clamp(clamp_max=2.8))
        >>> tx.update(torch.tensor([1.0, 2.0, 3.0]), tx.init(torch.zeros(3)))[0]
        tensor([0.0000, 2.0000, 2.8000])

    Source: the function of the same name in optax.
    """
    if not isinstance(shared, (tuple, list, set, frozenset)):
        raise TypeError(f"`shared` must be a tuple of names  Got: {shared!r}")
    return joined(transformations, shared)


def named_chain(*transformations: tuple[str, Any]) -> GradientTransformation:
    """Compose named transformations; the names appear in qualified hyperparameter keys.

    Args:
        *transformations: pairs ``(name, transformation)``, each name once. The links of a chain
            inside get ``<name>.<factory>_<i>``.

    Returns:
        A `GradientTransformation`, as `chain` makes it.

    Raises:
        TypeError: an argument is no pair of a name and a gradient transformation.
        ValueError: a name used twice, or a gradient link behind a parameter link.

    Example:
        >>> from rai_chain import clamp, named_chain
        >>> tx = named_chain(("low", clamp(clamp_min=0.0)), ("high", clamp(clamp_max=1.0)))
        >>> tx.hyperparams["high.clamp_max"]
        1.0

    Source: the function of the same name in optax.
    """
    parts = []
    for place, pair in enumerate(transformations):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"`named_chain` must get pairs (name, transformation)  Got: {pair!r}")
        name, transformation = pair
        links = as_links(transformation, place)
        inner = transformation.names if isinstance(transformation, Chain) else ("",)
        parts.append(Chain(links, tuple(f"{name}.{n}" if n else name for n in inner)))
    return joined(parts)
