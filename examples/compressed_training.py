"""Train on the largest hundredth of each gradient, with and without error feedback.

A small network learns the 8x8 digits of scikit-learn three times, from the same start and in the
same order. `top_q(0.99)` lets one weight in a hundred move in a step, as if the gradient had to
be sent over a slow wire; what it drops is lost. `error_feedback(top_q(0.99))` remembers what was
dropped and adds it to the next gradient, so that all of it arrives in the end. `masked` leaves the
biases, which are few, alone. `record` keeps what goes in and what comes out of each in the
state.

Options: --quick, for fewer epochs; --out DIR, the folder for the picture.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy, linear
from torch.utils._pytree import tree_map
from tqdm import tqdm

from rai_chain import (
    GradientTransformation,
    chain,
    error_feedback,
    global_norm,
    identity,
    masked,
    record,
    records,
    sgd,
    sparsity,
    top_q,
)

HIDDEN, BATCH, HELD_OUT = 128, 64, 450
Q, LR = 0.99, 0.05
STEPS = 1000  # that are recorded: all

Tree = dict[str, Tensor]
Data = tuple[Tensor, Tensor]

# ------------------------------------------------------------------ the three pipelines


def matrices(tree: Any) -> Any:
    """Which leaves are compressed."""
    return tree_map(lambda leaf: leaf.ndim > 1, tree)


def pipeline(compress: GradientTransformation) -> GradientTransformation:
    """Descent with momentum behind a compression of the weights, which is watched."""
    watched = chain(
        record("gradient", global_norm, capacity=STEPS),
        compress,
        record("sent", global_norm, capacity=STEPS),
        record("sparsity", sparsity, capacity=STEPS),
    )
    return chain(masked(watched, matrices), sgd(lr=LR, momentum=0.9))


LARGEST = top_q(Q, param_ndim=None)
PIPELINES = {
    "dense": pipeline(identity()),
    "top 1% with error feedback": pipeline(error_feedback(LARGEST)),
    "top 1%": pipeline(LARGEST),
}

# ------------------------------------------------------------------ training


def predict(params: Tree, images: Tensor) -> Tensor:
    hidden = linear(images, params["w1"], params["b1"]).relu()
    return linear(hidden, params["w2"], params["b2"])


def loss(params: Tree, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(predict(params, images), labels)


def train(
    tx: GradientTransformation, params: Tree, epochs: Tensor, data: Data, held_out: Data
) -> tuple[Tree, list[float], dict[str, Tensor]]:
    """Train on batches (epochs, steps, BATCH): parameters, held-out loss by epoch, records."""
    state, losses = tx.init(params), [loss(params, *held_out).item()]
    for epoch in epochs:
        for batch in epoch:
            grads = grad(loss)(params, data[0][batch], data[1][batch])
            params, state = tx.step(params, grads, state)
        losses.append(loss(params, *held_out).item())
    return params, losses, records(state)


def make_start() -> Tree:
    shapes = {"w1": (HIDDEN, 64), "b1": (HIDDEN,), "w2": (10, HIDDEN), "b2": (10,)}
    draws = {name: torch.randn(*shape) for name, shape in shapes.items()}
    return {k: v / v.shape[-1] ** 0.5 if v.ndim > 1 else 0 * v for k, v in draws.items()}


# ------------------------------------------------------------------ the picture


def draw(path: Path, curves: dict[str, list[float]], seen: dict[str, dict[str, Tensor]]) -> None:
    """The held-out loss, and the norm of what is sent, of each pipeline."""
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    colors = dict(zip(PIPELINES, ("black", "#0072b2", "#d55e00"), strict=True))
    for name, losses in curves.items():
        left.plot(losses, color=colors[name], label=f"{name}: {losses[-1]:.3f}")
    left.set(
        title="Learning the digits",
        xlabel="epoch",
        ylabel=f"cross-entropy on {HELD_OUT} held-out images",
    )
    left.legend(title="at the end")
    for name, own in seen.items():
        per_epoch = own["sent"].reshape(len(curves[name]) - 1, -1).mean(1)
        right.plot(range(1, len(per_epoch) + 1), per_epoch, color=colors[name], label=name)
    right.set(
        title="What the records saw",
        xlabel="epoch",
        ylabel="norm of what is sent (mean over the epoch)",
    )
    right.legend()
    for axis in (left, right):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def main() -> dict[str, Any]:
    """Train three times, compare, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="Training on one hundredth of the gradient.")
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    count = 4 if options.quick else 40

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    held_out, data = (images[:HELD_OUT], labels[:HELD_OUT]), (images[HELD_OUT:], labels[HELD_OUT:])
    size = len(data[0]) // BATCH * BATCH
    epochs = torch.stack([torch.randperm(len(data[0]))[:size] for _ in range(count)])
    epochs, start = epochs.reshape(count, -1, BATCH), make_start()

    curves: dict[str, list[float]] = {}
    seen: dict[str, dict[str, Tensor]] = {}
    table: dict[str, dict[str, float]] = {}
    for name, tx in tqdm(PIPELINES.items(), desc="train"):
        params, curves[name], seen[name] = train(tx, start, epochs, data, held_out)
        right = predict(params, held_out[0]).argmax(1) == held_out[1]
        table[name] = {
            "loss": curves[name][-1],
            "accuracy": right.float().mean().item(),
            "sparsity": seen[name]["sparsity"].mean().item(),
            "sent / gradient": (seen[name]["sent"] / seen[name]["gradient"]).mean().item(),
        }

    print(f"{epochs[:, :, 0].numel()} steps; loss and accuracy on {HELD_OUT} held-out images,")
    print("sparsity and norm of what is sent, means over all steps:\n")
    print(" " * 26 + "".join(f"{key:>17}" for key in table["dense"]))
    for name, row in table.items():
        print(f"{name:26}" + "".join(f"{value:17.4f}" for value in row.values()))

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "compressed_training.png"
    draw(picture, curves, seen)
    print("\npicture:", picture)
    return {"table": table, "curves": curves, "records": seen, "pictures": [picture]}


if __name__ == "__main__":
    results = main()
