"""Step sizes that are found on the way: from the loss, or from how far the parameters went."""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..core.define import treewise
from ..core.pipeline import GradientTransformation
from ..core.wrapper import Wrapper
from ..data.hyper import Flag, Range, RowNonNegative, RowNumber, Several, placed
from ..data.leaves import both, device_of, remember, zeros
from ..data.messages import told
from ..data.tree import Leaves, Spec, is_container, leaves_like, present
from ..engine.function import column_of
from ..engine.run import Run, State
from ..kernels.norms import joint_norm
from .descent import is_zero, optimizer, scale_by_learning_rate, where
from .memory import average, root, wide
from .transforms import clamped

Variant = Annotated[str, Flag(("sps", "sps+"))]


@treewise
def scale_by_polyak(
    leaves: list[Tensor],
    max_learning_rate: RowNonNegative = 1.0,
    f_min: RowNumber = 0.0,
    eps: RowNonNegative = 0.0,
    variant: Variant = "sps",
    *,
    value: Any,
) -> list[Tensor]:
    """Multiply by Polyak's step size, which follows from the loss; `update` needs `value`.

    ``g * min((value - f_min) / (norm(g)**2 + eps), max_learning_rate)``, with the norm over all
    leaves; a zero gradient stays zero.

    Args:
        max_learning_rate: largest step size, >= 0.
        f_min: a lower bound of the loss, any number but NaN.
        eps: added to the squared norm, >= 0.
        variant: "sps", or "sps+", which takes a loss below `f_min` for `f_min`.

    Raises:
        ValueError: a value outside its range, no `value`, or one that is not one number.

    Example:
        >>> import torch
        >>> tx, x = scale_by_polyak(), torch.tensor([3.0, 4.0])
        >>> tx.update(2 * x, tx.init(x), value=(x**2).sum())[0]
        tensor([1.5000, 2.0000])

    Source: Polyak 1987, "Introduction to Optimization"; Loizou et al. 2021, "Stochastic Polyak
    Step-size for SGD", arXiv 2002.10542; "sps+": Garrigos et al. 2023, arXiv 2307.14528.
    """
    if not leaves:
        return leaves
    square = joint_norm([leaf.reshape(1, -1) for leaf in leaves]).reshape(()) ** 2 + eps
    loss = placed(value, square.device)
    if loss.numel() != 1:
        raise ValueError(f"`value` must be one number, the loss  Got: {told(value)}")
    gap = loss.reshape(()) - f_min
    gap = gap.clamp(min=0) if variant == "sps+" else gap
    ratio = gap / torch.where(square == 0, 1, square)
    step = torch.where(square == 0, 0, clamped(ratio, None, max_learning_rate))
    return [(step * leaf).to(leaf.dtype) for leaf in leaves]


def polyak_sgd(
    max_learning_rate: Any = 1.0,
    scaling: Any = 1.0,
    f_min: Any = 0.0,
    eps: Any = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """Make gradient descent with Polyak's step size, which follows from the loss.

    A pure call takes the loss: ``tx.step(params, grads, state, value=loss)``; in an optimizer it
    is what the closure returns.

    Args:
        max_learning_rate: largest step size before it is scaled, >= 0; like all that follow but
            the variant, a number, a tensor (0-dim) or a schedule.
        scaling: factor of the step size, >= 0, which is the hyperparameter `lr`.
        f_min: a lower bound of the loss, any number but NaN; 0 where a model can fit its data.
        eps: added to the squared norm, >= 0.
        variant: "sps", or "sps+", which takes a loss below `f_min` for `f_min`.

    Returns:
        A `GradientTransformation`.

    Raises:
        ValueError: a value outside its range, or no `value`.

    Example:
        >>> import torch
        >>> tx, x = polyak_sgd(), torch.tensor([3.0, 4.0])
        >>> tx.step(x, 2 * x, tx.init(x), value=(x**2).sum())[0]
        tensor([1.5000, 2.0000])

    Source: Loizou et al. 2021, "Stochastic Polyak Step-size for SGD", arXiv 2002.10542; optax's of
    the same name.
    """
    step = scale_by_polyak(max_learning_rate, f_min, eps, variant)
    return optimizer(False, step, scale_by_learning_rate(scaling))


class Prodigy(Wrapper):
    """See `prodigy`."""

    label = "prodigy"
    own: ClassVar = {
        "lr": Range(0.0, per_row=True),
        "betas": Several(2, Range(0.0, 1.0, open_high=True, per_row=True)),
        "beta3": Range(0.0, 1.0, open_high=True, optional=True, per_row=True),
        "eps": Range(0.0, per_row=True),
        "estim_lr0": Range(0.0, per_row=True),
        "estim_lr_coef": Range(0.0, per_row=True),
        "weight_decay": Range(0.0),
        "safeguard_warmup": Flag(),
    }
    updates = True
    needs_params = True
    ticks = False
    trees = frozenset({"exp_avg", "exp_avg_sq", "grad_sum", "params0"})
    once = frozenset({"estim_lr", "numerator", "count"})

    def begin(self, leaves: Leaves, spec: Spec) -> State:
        copies: Leaves = [None if x is None else wide(x.detach()).clone() for x in leaves]
        kept = {key: zeros(leaves, spec) for key in ("exp_avg", "exp_avg_sq", "grad_sum")}
        zero = torch.zeros((), dtype=torch.float64, device=device_of(leaves))
        scalars = {"estim_lr": zero, "numerator": zero.clone(), "count": zero.long()}
        return {**kept, **scalars, "params0": present(copies, spec)}

    def wrap(
        self, leaves: Leaves, state: State, run: Run, values: Any, **own: Any
    ) -> tuple[Leaves, State]:
        (beta1, beta2), beta3, first = own["betas"], own["beta3"], own["estim_lr0"]
        beta3 = beta2**0.5 if beta3 is None else beta3
        count = state["count"] + 1
        d = torch.where(count == 1, first, state["estim_lr"])
        debias = (1 - beta2 ** count.double()) ** 0.5 / (1 - beta1 ** count.double())
        rate = d * own["lr"] * debias
        grads: Leaves = [None if g is None else wide(g) for g in leaves]
        kept = {key: column_of(state, key, run.spec) for key in self.trees}
        here = run.params or []
        nothing = torch.zeros_like(state["numerator"])

        gone = both(lambda p0, p: p0 - wide(p), kept["params0"], here)
        dots = both(lambda g, far: (g * far).sum(dtype=d.dtype), grads, gone)
        along = sum((x for x in dots if x is not None), nothing)
        numerator = beta3 * state["numerator"] + d / first * rate * along
        drive = (d if own["safeguard_warmup"] else rate) * d / first
        kept["grad_sum"] = remember(
            lambda s, g: (beta3 * s + drive * g).to(s.dtype), kept["grad_sum"], grads
        )
        sizes = [s.abs().sum(dtype=d.dtype) for s in kept["grad_sum"] if s is not None]
        total = sum(sizes, nothing)
        found = own["estim_lr_coef"] * numerator / torch.where(total == 0, 1, total)
        estim = torch.where(total == 0, d, torch.maximum(d, found))
        for key, beta, power in (("exp_avg", beta1, 1), ("exp_avg_sq", beta2, 2)):
            kept[key] = remember(
                lambda m, g, beta=beta, power=power: average(m, (d * g) ** power, beta).to(m.dtype),  # type: ignore[misc]
                kept[key],
                grads,
            )
        avg, square, decay = kept["exp_avg"], kept["exp_avg_sq"], own["weight_decay"]
        each = [decay] * len(leaves)
        if is_container(decay):
            each = leaves_like(decay, run.spec, "weight_decay", "`params`")
        adam = both(lambda m, v: m / (root(v) + estim * own["eps"]), avg, square)
        down = both(torch.add, adam, both(lambda p, wd: wd * wide(p), here, each))
        out = both(lambda g, u: (-rate * u).to(g.dtype), leaves, down)
        once = {"estim_lr": estim, "numerator": numerator, "count": count}
        return out, {"inner": {}, **once, **{k: present(v, run.spec) for k, v in kept.items()}}


def prodigy(
    lr: Any = 1.0,
    betas: Any = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    *,
    maximize: bool = False,
    mask: Any = None,
) -> GradientTransformation:
    """Make Prodigy: AdamW whose learning rate grows with the distance from the start.

    The estimate is ``estim_lr`` in the state. It is one for the whole tree (a param group).

    Args:
        lr: factor of the estimate, >= 0; like all that follow but the flags, a number, a tensor
            (0-dim) or a schedule.
        betas: (beta1, beta2): decay of the mean of gradients and decay of the mean of squares,
            each at least 0 and below 1.
        beta3: decay of the sums that the estimate is made of, likewise; None for sqrt(beta2).
        eps: times the estimate, added to the root of the mean of squares, >= 0.
        estim_lr0: the first estimate, > 0, well below the true one.
        estim_lr_coef: factor of later estimates, >= 0.
        weight_decay: what each step of size 1 takes off the parameters, >= 0.
        safeguard_warmup: leave `lr` out of the denominator of the estimate, a Python bool: for
            a schedule that starts low.
        maximize: climb, a Python bool.
        mask: bools like the params or their upper part, where weights decay; None for everywhere.

    Returns:
        A `GradientTransformation`; `update` needs `params`.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> import torch
        >>> tx, x = prodigy(), torch.tensor(1.0)
        >>> state = tx.init(x)
        >>> for _ in range(90):
        ...     x, state = tx.step(x, x, state)  # the gradient of x**2 / 2
        >>> bool(x.abs() < 0.05)
        True

    Source: Mishchenko and Defazio 2023, "Prodigy", arXiv 2306.06101; optax's of the same name.
    """
    if is_zero(estim_lr0):
        raise ValueError(f"`estim_lr0` must satisfy 0 < estim_lr0  Got: {estim_lr0}")
    options = {"lr": lr, "betas": betas, "beta3": beta3, "eps": eps, "estim_lr0": estim_lr0}
    options |= {"estim_lr_coef": estim_lr_coef, "weight_decay": where(mask, weight_decay)}
    return optimizer(maximize, Prodigy({}, **options, safeguard_warmup=safeguard_warmup))
