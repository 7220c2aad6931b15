"""Combinators: transformations around transformations, with optax's names and meanings.

Each is a link, so it may stand anywhere in a chain; the hyperparameters of what it wraps are its
own. Decisions are `torch.where` on tensors: no read on the host, right under `vmap`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.chain import chain
from ..core.link import show
from ..core.pipeline import GradientTransformation, Link
from ..core.wrapper import Inner, Wrapper, both, choose, zeros
from ..data.checks import add
from ..data.hyper import Flag, Range
from ..data.tree import Leaves, Spec, Tree, flatten, leaf_names, leaves_like, unflatten
from ..engine.run import Run, State

# ------------------------------------------------------------------ which leaves


class Masked(Wrapper):
    """See `masked`."""

    label = "masked"
    ticks = False

    def chosen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        mask = self.options["mask"]
        tree = mask(unflatten(list(leaves), spec)) if callable(mask) else mask
        return [bool(flag) for flag in leaves_like(tree, spec, "mask", "`params`")]

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        out = both(add, run.params or [], leaves) if self.phase == "step" else list(leaves)
        results, inner = self.through("", leaves, state, run, values)
        for i, result in zip(self.part("", leaves, run).places, results, strict=True):
            out[i] = result
        return out, {"inner": {"": inner}}


def masked(inner: GradientTransformation, mask: Tree | Callable[[Tree], Tree]) -> Link:
    """Apply a transformation to some leaves only; the others pass, and get no state.

    Args:
        inner: any pipeline.
        mask: a tree of bools like the params, or a function that makes one of a tree like them.

    Raises:
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
    made: Link = Masked({"": chain(inner)}, mask=mask)
    return made


class Partition(Wrapper):
    """See `partition`."""

    label = "partition"
    ticks = False

    def __repr__(self) -> str:
        parts = ", ".join(f"{k[:-1]!r}: {t!r}" for k, t in self.inners.items())
        return f"partition({{{parts}}}, labels={show(self.options['labels'])})"

    def labels(self, spec: Spec) -> list[Any]:
        given = self.options["labels"]
        labels = (
            [given(name) for name in leaf_names(spec)]
            if callable(given)
            else list(leaves_like(given, spec, "labels", "`params`"))
        )
        known = {prefix[:-1] for prefix in self.inners}
        for label in labels:
            if label is not None and str(label) not in known:
                raise ValueError(
                    f"`labels` must be among {', '.join(sorted(known))}  Got: {label!r}"
                )
        return labels

    def chosen(self, prefix: str, leaves: Leaves, spec: Spec) -> list[bool]:
        return [f"{label}." == prefix for label in self.labels(spec)]

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        out, inner = list(run.params or [] if self.phase == "step" else leaves), {}
        for prefix in self.inners:
            results, inner[prefix] = self.through(prefix, leaves, state, run, values)
            for i, result in zip(self.part(prefix, leaves, run).places, results, strict=True):
                out[i] = result
        return out, {"inner": inner}


def partition(
    transforms: Mapping[str, GradientTransformation], labels: Tree | Callable[[str], str]
) -> Link:
    """Apply a transformation to each leaf according to its label.

    Args:
        transforms: label -> pipeline; its hyperparameters get the keys ``<label>.<name>``.
        labels: a tree of labels like the params, or a function of the leaf's path, such as
            ``"['layer']['bias']"``.

    Raises:
        ValueError: a label without a pipeline, or no tree like the params.

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
    made: Link = Partition({f"{k}.": chain(t) for k, t in transforms.items()}, labels=labels)
    return made


# ------------------------------------------------------------------ when


class ApplyIfFinite(Wrapper):
    """See `apply_if_finite`."""

    label = "apply_if_finite"
    own: ClassVar = {"max_consecutive_errors": Range(0.0)}
    ticks = False
    keeps = ("notfinite_count", "total_notfinite")

    def begin(self, leaves: Leaves, spec: Spec) -> dict[str, Any]:
        device = next((leaf.device for leaf in leaves if leaf is not None), None)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return {"notfinite_count": zero, "total_notfinite": zero.clone()}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        flags = [leaf.isfinite().all() for leaf in leaves if leaf is not None]
        zero = torch.zeros_like(state["notfinite_count"])
        finite = torch.stack(flags).all() if flags else zero == 0
        count = torch.where(finite, zero, zero + state["notfinite_count"] + 1)
        accept = finite | (count > own["max_consecutive_errors"])
        new, inner = self.through("", leaves, state, run, values)
        old = (
            run.params or []
            if self.phase == "step"
            else [None if leaf is None else torch.zeros_like(leaf) for leaf in leaves]
        )
        out = both(lambda a, b: torch.where(accept, a, b), new, old)
        return out, {
            "inner": {"": choose(accept, inner, state["inner"][""])},
            "notfinite_count": count,
            "total_notfinite": state["total_notfinite"] + ~finite,
        }


def apply_if_finite(inner: GradientTransformation, max_consecutive_errors: Any) -> Link:
    """Apply a transformation unless a gradient has NaN or inf: then nothing moves.

    The updates are zero (the parameters stay, where `inner` steps) and the state of `inner` is
    kept. The state counts: ``notfinite_count`` in a row, ``total_notfinite`` in all.

    Args:
        inner: any pipeline.
        max_consecutive_errors: after more of them in a row they pass, >= 0.

    Raises:
        ValueError: max_consecutive_errors < 0.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = apply_if_finite(scale(2.0), max_consecutive_errors=3)
        >>> g = torch.tensor([1.0, float("nan")])
        >>> tx.update(g, tx.init(g))[0]
        tensor([0., 0.])

    Source: the function of the same name in optax.
    """
    made: Link = ApplyIfFinite({"": chain(inner)}, max_consecutive_errors=max_consecutive_errors)
    return made


class Conditionally(Wrapper):
    """See `conditionally`."""

    label = "conditionally"

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        condition = self.options["predicate"](unflatten(list(leaves), run.spec), state["step"])
        condition = torch.as_tensor(condition)
        new, inner = self.through("", leaves, state, run, values)
        old = both(add, run.params or [], leaves) if self.phase == "step" else leaves
        out = both(lambda a, b: torch.where(condition, a, b), new, old)
        return out, {"inner": {"": choose(condition, inner, state["inner"][""])}}


def conditionally(
    inner: GradientTransformation, predicate: Callable[[Tree, Tensor], Tensor]
) -> Link:
    """Apply a transformation where a predicate holds; elsewhere updates pass as they are.

    Args:
        inner: any pipeline; its state moves only where the predicate holds.
        predicate: ``(updates, step) -> 0-dim bool tensor``; it is traced, never read.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = conditionally(scale(0.0), lambda updates, step: step >= 1)
        >>> g = torch.ones(2)
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([1., 1.]), tensor([0., 0.]))

    Source: `conditionally_transform` in optax.
    """
    made: Link = Conditionally({"": chain(inner)}, predicate=predicate)
    return made


class Accumulate(Wrapper):
    """See `accumulate`."""

    label = "accumulate"
    own: ClassVar = {"every_k": Range(1.0, whole=True)}
    keeps = ("sum",)

    def begin(self, leaves: Leaves, spec: Spec) -> dict[str, Any]:
        return {"sum": zeros(leaves, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        every = own["every_k"]
        total = both(torch.add, flatten(state["sum"])[0], leaves)
        done = (state["step"] + 1) % every == 0
        share = 1.0 / every if self.options["reduce"] == "mean" else 1.0
        sent = [None if t is None else (t * share).to(t.dtype) for t in total]
        new, inner = self.through("", sent, state, run, values)
        old = run.params or [] if self.phase == "step" else flatten(zeros(leaves, run.spec))[0]
        out = both(lambda a, b: torch.where(done, a, b), new, old)
        kept = both(lambda a, b: torch.where(done, torch.zeros_like(a), a), total, total)
        return out, {
            "inner": {"": choose(done, inner, state["inner"][""])},
            "sum": unflatten(kept, run.spec),
        }


def accumulate(inner: GradientTransformation, every_k: Any, reduce: str = "mean") -> Link:
    """Gather gradients over `every_k` calls, then apply a transformation to their mean or sum.

    In between the updates are zero (the parameters stay, where `inner` steps).

    Args:
        inner: any pipeline.
        every_k: calls to gather, >= 1.
        reduce: "mean" or "sum".

    Raises:
        ValueError: every_k < 1, or another `reduce`.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = accumulate(scale(1.0), every_k=2)
        >>> first, state = tx.update(torch.tensor(1.0), tx.init(torch.tensor(0.0)))
        >>> second, state = tx.update(torch.tensor(3.0), state)
        >>> first, second
        (tensor(0.), tensor(2.))

    Source: `MultiSteps` in optax.
    """
    Flag(("mean", "sum")).check("reduce", reduce)
    made: Link = Accumulate({"": chain(inner)}, every_k=every_k, reduce=reduce)
    return made


# ------------------------------------------------------------------ what is carried over


class ErrorFeedback(Wrapper):
    """See `error_feedback`."""

    label = "error_feedback"
    ticks = False
    keeps = ("error",)

    def begin(self, leaves: Leaves, spec: Spec) -> dict[str, Any]:
        return {"error": zeros(leaves, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        whole = both(torch.add, leaves, flatten(state["error"])[0])
        out, inner = self.through("", whole, state, run, values)
        error = both(torch.sub, whole, out)
        return out, {"inner": {"": inner}, "error": unflatten(error, run.spec)}


def error_feedback(inner: GradientTransformation) -> Link:
    """Add next time what a transformation dropped this time.

    Args:
        inner: gradient links that compress: `top_q`, or `sign` and a scale.

    Raises:
        ValueError: `inner` has a link that is no gradient link.

    Example:
        >>> import torch
        >>> from rai_chain import top_q
        >>> tx = error_feedback(top_q(q=0.5, param_ndim=None))
        >>> g = torch.tensor([3.0, 2.0])
        >>> first, state = tx.update(g, tx.init(g))
        >>> second, state = tx.update(g, state)
        >>> first, second
        (tensor([3., 0.]), tensor([0., 4.]))

    Source: Lin et al. 2017, "Deep Gradient Compression", arXiv 1712.01887; Karimireddy et al.
    2019, "Error Feedback Fixes SignSGD", arXiv 1901.09847.
    """
    made: Link = ErrorFeedback({"": chain(inner)})
    if made.phase != "gradient":
        raise ValueError(f"`inner` must have gradient links only  Got: {inner!r}")
    return made


class Lookahead(Wrapper):
    """See `lookahead`."""

    label = "lookahead"
    own: ClassVar = {"sync_period": Range(1.0, whole=True), "slow_step_size": Range(0.0, 1.0)}
    keeps = ("slow",)

    def __new__(cls, inners: Inner, **options: Any) -> Any:
        self = super().__new__(cls, inners, **options)
        self.phase, self.needs_params = "step", True
        return self

    def begin(self, leaves: Leaves, spec: Spec) -> dict[str, Any]:
        copies: Leaves = [None if leaf is None else leaf.detach().clone() for leaf in leaves]
        return {"slow": unflatten(copies, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: dict[str, Any], **own: Any
    ) -> tuple[Leaves, State]:
        fast, inner = self.through("", leaves, state, run, values)
        slow = flatten(state["slow"])[0]
        sync = (state["step"] + 1) % own["sync_period"] == 0
        rate = own["slow_step_size"]
        met = both(lambda s, f: torch.where(sync, (s + rate * (f - s)).to(s.dtype), s), slow, fast)
        out = both(lambda m, f: torch.where(sync, m, f), met, fast)
        return out, {"inner": {"": inner}, "slow": unflatten(met, run.spec)}


def lookahead(
    inner: GradientTransformation, sync_period: Any = 6, slow_step_size: Any = 0.5
) -> Link:
    """Let fast parameters run, and every `sync_period` steps move slow ones towards them.

    Args:
        inner: a pipeline that makes the fast parameters' step.
        sync_period: steps between meetings, >= 1.
        slow_step_size: the part of the way that the slow ones go, in [0, 1].

    Raises:
        ValueError: a value outside its interval.

    Example:
        >>> import torch
        >>> from rai_chain import scale
        >>> tx = lookahead(scale(-1.0), sync_period=2)
        >>> p = torch.tensor(0.0)
        >>> p, state = tx.step(p, torch.tensor(1.0), tx.init(p))
        >>> p
        tensor(-1.)
        >>> tx.step(p, torch.tensor(1.0), state)[0]
        tensor(-1.)

    Source: Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back",
    arXiv 1907.08610.
    """
    made: Link = Lookahead(
        {"": chain(inner)}, sync_period=sync_period, slow_step_size=slow_step_size
    )
    return made
