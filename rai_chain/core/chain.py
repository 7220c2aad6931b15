"""Joining links into pipelines."""

from collections import Counter
from typing import Any

import torchopt.base

from ..engine.run import PHASES
from .foreign import Foreign
from .pipeline import GradientTransformation, Link


class Chain(GradientTransformation):
    """A row of links, applied from left to right: made by `chain` and `named_chain`."""

    given: tuple[str | None, ...]

    def __new__(cls, links: tuple[Link, ...], given: tuple[str | None, ...]) -> "Chain":
        self = super().__new__(cls)
        self.links, self.given = links, given
        self.names = link_names(links, given)
        counts = Counter(name for link in links for name in link.values)
        self.keys = [
            {n: f"{own}.{n}" if counts[n] > 1 else n for n in link.values}
            for own, link in zip(self.names, links, strict=True)
        ]
        check_order(links, self.names)
        return self

    def __repr__(self) -> str:
        named = any(self.given)
        parts = [
            f"({name!r}, {link!r})" if named else repr(link)
            for name, link in zip(self.names, self.links, strict=True)
        ]
        head = "named_chain" if named else "chain"
        line = f"{head}({', '.join(parts)})"
        if len(line) <= 88:
            return line
        return f"{head}(\n" + "".join(f"    {part},\n" for part in parts) + ")"

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.links, self.given)


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
        if PHASES.index(after.phase) < PHASES.index(before.phase):
            raise ValueError(
                f"`{names[i]}` must come before every {before.phase} link, as it is a "
                f"{after.phase} link  Got: place {i}, behind `{names[i - 1]}` at place {i - 1}"
            )
        if before.phase == after.phase == "step":
            raise ValueError(
                f"`{names[i]}` must be the only link that steps  Got: `{names[i - 1]}` before it"
            )


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


def chain(*transformations: Any) -> GradientTransformation:
    """Compose transformations from left to right.

    Args:
        *transformations: links, chains (flattened), and TorchOpt's transformations. Gradient
            links first, then at most one link that steps, then parameter links.

    Returns:
        A `GradientTransformation` whose state is the tuple of its links' states. A
        hyperparameter that two links have gets the keys ``<factory>_<i>.<name>``.

    Raises:
        TypeError: an argument is no gradient transformation.
        ValueError: a gradient link behind a parameter link.

    Example:
        >>> import torch
        >>> from rai_chain import chain, clamp, top_q
        >>> tx = chain(top_q(q=0.33, param_ndim=None), clamp(clamp_max=2.8))
        >>> tx.update(torch.tensor([1.0, 2.0, 3.0]), tx.init(torch.zeros(3)))[0]
        tensor([0.0000, 2.0000, 2.8000])

    Source: the function of the same name in optax.
    """
    parts = [as_links(t, i) for i, t in enumerate(transformations)]
    names = [
        t.given if isinstance(t, Chain) else (None,) * len(p)
        for t, p in zip(transformations, parts, strict=True)
    ]
    return Chain(sum(parts, ()), sum(names, ()))


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
    links: tuple[Link, ...] = ()
    given: tuple[str, ...] = ()
    for place, pair in enumerate(transformations):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"`named_chain` must get pairs (name, transformation)  Got: {pair!r}")
        name, transformation = pair
        own = as_links(transformation, place)
        inner = transformation.names if isinstance(transformation, Chain) else ("",)
        links += own
        given += tuple(f"{name}.{n}" if n else name for n in inner)
    return Chain(links, given)
