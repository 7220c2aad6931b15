"""Solving for perturbations with torch optimizers; in pure functions: `rai_chain.solve`."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.hyper import Range
from ..solve import Kept
from .models import AdditivePerturbation, PerturbationModel

Solver = Callable[..., tuple[Tensor, Tensor]]


def gradient_ascent(
    *,
    model: Callable[[Tensor], Tensor],
    data: Any,
    target: Any,
    optimizer: Any,
    steps: int,
    perturbation_model: Any = AdditivePerturbation,
    targeted: bool = False,
    use_best: bool = False,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    reduction_fn: Callable[[Tensor], Tensor] = torch.sum,
    **optim_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Solve for the perturbations of data that raise a loss, and apply them.

    An optimizer changes the parameters of a perturbation model for some steps, down the gradient
    of ``-loss``, or of the loss itself where `targeted`.

    Args:
        model: a differentiable function of the perturbed data. A `torch.nn.Module` is in eval
            mode meanwhile, its parameters without gradients; both are put back.
        data: the batch to perturb, (N, ...); anything that `torch.as_tensor` takes.
        target: what the loss compares with, (N, ...).
        optimizer: a class of torch optimizers, a partial of one, any function like one such as
            ``chain(...).optimizer``; or an optimizer of the parameters of a `perturbation_model`
            that is made already.
        steps: >= 0.
        perturbation_model: a class that is made with `data`, a partial of one, or a model that is
            made already; see `PerturbationModel`.
        targeted: whether to go towards `target`: to lower the loss.
        use_best: whether each example has its best perturbation of all steps, not the last.
        criterion: ``(output, target) -> losses``, (N,). None is the cross entropy.
        reduction_fn: ``losses -> 0-dim``; `torch.mean` where one perturbation serves all.
        **optim_kwargs: passed on to `optimizer`.

    Returns:
        The perturbed data, (N, ...), and the loss of each, without a graph.

    Raises:
        TypeError: an optimizer or perturbation model of another kind, or `optim_kwargs` for an
            optimizer that is made already.
        ValueError: `use_best` with a loss that is not one number for each example.

    Example:
        >>> found, losses = gradient_ascent(
        ...     model=lambda x: x,
        ...     data=[-1.0, 2.0],
        ...     target=[0.0, 0.0],
        ...     criterion=lambda output, target: (output - target).abs(),
        ...     optimizer=torch.optim.SGD,
        ...     lr=0.25,
        ...     steps=4,
        ... )
        >>> found
        tensor([-2.,  3.])

    Source: the function of the same name in rai-toolbox.
    """
    Range(0, static=True, whole=True).check("steps", steps)
    data, target = torch.as_tensor(data).detach(), torch.as_tensor(target).detach()
    if criterion is None:
        criterion = nn.CrossEntropyLoss(reduction="none")
    perturb = _made_model(perturbation_model, data)
    optim = _made_optimizer(optimizer, perturb, perturb is perturbation_model, optim_kwargs)
    kept = Kept(1.0 if targeted else -1.0)

    def look() -> tuple[Tensor, Tensor]:
        perturbed = perturb(data)
        losses = criterion(model(perturbed), target)
        if use_best:
            _check_losses(losses, data)
            kept.take(perturbed.detach(), losses.detach(), kept.beaten(losses.detach()))
        return perturbed, losses

    with _frozen(model):
        with torch.enable_grad():
            for _ in range(steps):
                losses = look()[1]
                optim.zero_grad(set_to_none=True)
                reduction_fn(losses if targeted else -losses).backward()  # type: ignore[no-untyped-call]
                optim.step()
        optim.zero_grad(set_to_none=True)
        with torch.no_grad():
            perturbed, losses = look()
    if use_best and kept.values is not None:
        return kept.x, kept.values
    return perturbed.detach(), losses.detach()


def random_restart(solver: Solver, repeats: int) -> Solver:
    """Run a solver several times, and keep the best that each example met.

    Args:
        solver: returns perturbed data, (N, ...), and losses, (N,); as `gradient_ascent`, whose
            perturbation model then starts somewhere else each time. The largest loss is the best,
            with the argument ``targeted=True`` the smallest.
        repeats: how often, >= 1.

    Returns:
        A function with the arguments of `solver`.

    Raises:
        TypeError: `repeats` is no number.
        ValueError: repeats < 1.

    Example:
        >>> tries = iter([torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])])
        >>> def solver():
        ...     found = next(tries)
        ...     return found, found
        >>> random_restart(solver, 2)()[1]
        tensor([3., 4.])

    Source: the function of the same name in rai-toolbox.
    """
    Range(1, static=True, whole=True).check("repeats", repeats)

    @functools.wraps(solver)
    def restarted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kept = Kept(1.0 if kwargs.get("targeted", False) else -1.0)
        for _ in range(int(repeats)):
            perturbed, losses = solver(*args, **kwargs)
            kept.take(perturbed, losses, kept.beaten(losses))
        return kept.x, kept.values  # type: ignore[return-value]

    return restarted


def _made_model(given: Any, data: Tensor) -> Any:
    """The perturbation model: itself, or what its class makes of the data."""
    kind = given.func if isinstance(given, functools.partial) else given
    if inspect.isclass(kind) and callable(getattr(kind, "parameters", None)):
        return given(data)
    if inspect.isclass(kind) or not isinstance(given, PerturbationModel):
        raise TypeError(
            "`perturbation_model` must be a function of data with `parameters`, or a class of "
            f"such  Got: {given!r}"
        )
    return given


def _made_optimizer(given: Any, perturb: Any, model_is_given: bool, kwargs: Any) -> Optimizer:
    """The optimizer: itself, or what its class makes of the parameters."""
    if not isinstance(given, Optimizer):
        made = given(perturb.parameters(), **kwargs) if callable(given) else given
        if not isinstance(made, Optimizer):
            raise TypeError(f"`optimizer` must be a torch optimizer, or make one  Got: {given!r}")
        return made
    if not model_is_given:
        raise TypeError(
            "`perturbation_model` must be made already, as the optimizer of its parameters is  "
            "Got: a class"
        )
    if kwargs:
        raise TypeError(
            f"`{next(iter(kwargs))}` must be given to `optimizer`, which is made already  "
            f"Got: {kwargs}"
        )
    return given


def _check_losses(losses: Tensor, data: Tensor) -> None:
    whole = losses.ndim == 0 and data.ndim > 0
    if whole or losses.shape != data.shape[: losses.ndim]:
        raise ValueError(
            f"`criterion` must return one loss for each example with `use_best`, shape "
            f"{tuple(data.shape[:1])}  Got: shape {tuple(losses.shape)}"
        )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A module in eval mode; then each of its submodules in its own again."""
    inside = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in inside]
    try:
        for module in inside[:1]:
            module.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """A module in eval mode, its parameters without gradients; then all as it was."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    asked = [p for p in parameters if p.requires_grad]
    with evaluating(model):
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in asked:
                parameter.requires_grad_(True)
