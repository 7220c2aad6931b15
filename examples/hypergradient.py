"""Tune learning rate, momentum and clamp bound by differentiating through 50 training steps.

A small network learns the 8x8 digits of scikit-learn, a fifth of them with a wrong label, in 50
steps of `chain(clamp, sgd)`. All of that is one function of its hyperparameters, so that
`torch.func.grad` has the derivative of the loss on validation images, after training, in each of
them; and descent along it, with Adam as a pure function, tunes all three at once. `vmap` averages
over several starts and data orders. The loss that counts in the end is on images, starts and
orders that were not used for that.

Options: --quick, for fewer meta-steps and starts; --out DIR, the folder for the picture.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from rai_chain import adam, chain, clamp, clip_by_global_norm, cosine_decay_schedule, sgd

STEPS, BATCH, HIDDEN = 50, 32, 32
SPLIT = 600  # images to train on, as many to validate on; the rest are to test on
WRONG = 0.2  # of the labels to train on

TX = chain(clamp(clamp_min=-1.0, clamp_max=1.0), sgd(lr=0.1, momentum=0.5))
INITIAL = {"lr": 0.02, "momentum": 0.5, "clamp_max": 0.01}

Tree = dict[str, Tensor]
Data = tuple[Tensor, Tensor]
Runs = tuple[Tree, Tensor]  # a start and an order each, stacked

# ------------------------------------------------------------------ training as a function


def loss(params: Tree, images: Tensor, labels: Tensor) -> Tensor:
    hidden = linear(images, params["w1"], params["b1"]).tanh()
    return cross_entropy(linear(hidden, params["w2"], params["b2"]), labels)


def to_free(values: dict[str, float]) -> Tree:
    """Hyperparameters as numbers without bounds: logarithms, and the logit of the momentum."""
    free = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return {k: v.logit() if k == "momentum" else v.log() for k, v in free.items()}


def from_free(free: Tree) -> Tree:
    """The hyperparameters of `TX`, inside their intervals by construction."""
    bound = free["clamp_max"].exp()
    own = {"lr": free["lr"].exp(), "momentum": free["momentum"].sigmoid()}
    return {**own, "clamp_min": -bound, "clamp_max": bound}


def trajectory(free: Tree, start: Tree, order: Tensor, train: Data) -> list[Tree]:
    """The parameters before each training step and after the last."""
    params, state, hyperparams = [start], TX.init(start), from_free(free)
    for batch in order:
        grads = grad(loss)(params[-1], train[0][batch], train[1][batch])
        new, state = TX.step(params[-1], grads, state, hyperparams=hyperparams)
        params.append(new)
    return params


def final_loss(free: Tree, runs: Runs, train: Data, other: Data) -> Tensor:
    """The loss on other data after training, the mean over runs: what is differentiated."""

    def final(start: Tree, order: Tensor) -> Tensor:
        return loss(trajectory(free, start, order, train)[-1], *other)

    return vmap(final)(*runs).mean()


def mean_curve(free: Tree, runs: Runs, train: Data, other: Data) -> list[float]:
    """The loss on other data before each training step and after the last."""

    def curve(start: Tree, order: Tensor) -> Tensor:
        return torch.stack([loss(p, *other) for p in trajectory(free, start, order, train)])

    mean: list[float] = vmap(curve)(*runs).mean(0).tolist()
    return mean


# ------------------------------------------------------------------ data and starts


def load() -> tuple[Data, Data, Data]:
    """Images (N, 64) in [0, 1] and labels (N,): to train on, to validate on, to test on."""
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images, labels = torch.tensor(digits.data)[order] / 16, torch.tensor(digits.target)[order]
    wrong = torch.rand(SPLIT) < WRONG
    labels[:SPLIT] = torch.where(wrong, torch.randint(10, (SPLIT,)), labels[:SPLIT])
    parts = (slice(SPLIT), slice(SPLIT, 2 * SPLIT), slice(2 * SPLIT, None))
    train, validate, test = ((images[part], labels[part]) for part in parts)
    return train, validate, test


def make_runs(count: int) -> Runs:
    """Starts, stacked, and the images of each batch, (count, STEPS, BATCH)."""
    shapes = {"w1": (HIDDEN, 64), "b1": (HIDDEN,), "w2": (10, HIDDEN), "b2": (10,)}
    draws = {k: torch.randn(count, *s, dtype=torch.float64) for k, s in shapes.items()}
    start = {k: v / v.shape[-1] ** 0.5 if k[0] == "w" else 0 * v for k, v in draws.items()}
    return start, torch.randint(SPLIT, (count, STEPS, BATCH))


def by_differences(free: Tree, name: str, *args: Any, width: float = 1e-6) -> Tensor:
    """The derivative of `final_loss` in one hyperparameter, without autograd."""
    ends = [final_loss({**free, name: free[name] + d}, *args) for d in (width, -width)]
    return (ends[0] - ends[1]) / (2 * width)


# ------------------------------------------------------------------ the picture


def draw(
    path: Path, losses: list[float], history: dict[str, list[float]], curves: dict[str, list[float]]
) -> None:
    """The loss against the meta-step, the hyperparameters, and training before and after."""
    figure = Figure(figsize=(13, 4), layout="constrained", dpi=150)
    left, middle, right = figure.subplots(1, 3)
    left.plot(losses, color="#0072b2")
    left.set(
        title=f"Loss after {STEPS} training steps",
        xlabel="meta-step",
        ylabel="cross-entropy on validation images",
        ylim=(0, None),
    )
    colors = {"lr": "#d55e00", "momentum": "#009e73", "clamp_max": "#cc79a7"}
    names = {"lr": "learning rate", "momentum": "momentum", "clamp_max": "clamp bound"}
    for name, values in history.items():
        middle.plot(values, color=colors[name], label=f"{names[name]}: {values[-1]:.3f}")
    middle.set(title="What is tuned", xlabel="meta-step", ylabel="hyperparameter", yscale="log")
    middle.legend(loc="lower right")
    for (name, values), style in zip(curves.items(), ("--", "-"), strict=True):
        label = f"{name}: {values[-1]:.2f} at the end"
        right.plot(values, color="black", linestyle=style, label=label)
    right.set(
        title="Training with new starts and orders",
        xlabel="training step",
        ylabel="cross-entropy on test images",
        ylim=(0, None),
    )
    right.legend()
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def main() -> dict[str, Any]:
    """Check the derivative, tune, compare, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="Hyperparameters tuned by their gradients.")
    parser.add_argument("--quick", action="store_true", help="fewer meta-steps and starts")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    meta_steps, count = (5, 2) if options.quick else (40, 8)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    train, validate, test = load()
    runs, new_runs = make_runs(count), make_runs(count)
    free = to_free(INITIAL)
    before = mean_curve(free, new_runs, train, test)

    exact = grad(final_loss)(free, runs, train, validate)
    differences = {k: by_differences(free, k, runs, train, validate) for k in free}
    print(f"{TX}\n\nd loss / d hyperparameter      torch.func.grad  finite differences")
    for (name, value), check in zip(exact.items(), differences.values(), strict=True):
        label = "logit momentum" if name == "momentum" else f"log {name}"
        print(f"{label:30} {value.item():15.8f}  {check.item():18.8f}")
        torch.testing.assert_close(value, check, rtol=1e-3, atol=1e-6)

    meta_tx = chain(clip_by_global_norm(1.0), adam(cosine_decay_schedule(0.1, meta_steps)))
    state = meta_tx.init(free)
    losses: list[float] = []
    history: dict[str, list[float]] = {name: [] for name in free}
    for _ in tqdm(range(meta_steps), desc="tune"):
        for name, values in history.items():
            values.append(from_free(free)[name].item())
        grads, value = grad_and_value(final_loss)(free, runs, train, validate)
        losses.append(value.item())
        free, state = meta_tx.step(free, grads, state)
    for name, values in history.items():
        values.append(from_free(free)[name].item())
    losses.append(final_loss(free, runs, train, validate).item())
    after = mean_curve(free, new_runs, train, test)

    print("\nmeta-step  loss on validation images  " + "".join(f"{k:>11}" for k in history))
    for i in range(0, meta_steps + 1, max(1, meta_steps // 8)):
        print(f"{i:9}  {losses[i]:25.4f}  " + "".join(f"{v[i]:11.4f}" for v in history.values()))
    ends = {"before": before[-1], "after": after[-1]}
    print(f"\nloss on test images, new starts: {ends['before']:.3f} before", end=", ")
    print(f"{ends['after']:.3f} after")

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "hypergradient.png"
    draw(picture, losses, history, {"before": before, "after": after})
    print("\npicture:", picture)
    return {"losses": losses, "history": history, **ends, "pictures": [picture]}


if __name__ == "__main__":
    results = main()
