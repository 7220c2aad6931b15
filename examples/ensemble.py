"""32 networks trained at once: which learning rate does which sparsity of the gradient want?

Each network learns the 8x8 digits of scikit-learn from a start of its own and in an order of its
own, by descent along the largest elements of its gradients: one pipeline, `chain(top_q, sgd)`,
whose `lr` and `q` are tensors with one value for each network. `torch.func.vmap` makes the
training step of one network the training step of all. How much faster is that than 32 runs one
after the other? Both kinds are timed: the same function without vmap, and the ordinary loop with
`backward` and torch's SGD behind the same `top_q`. Times are of one processor core, so that
other programs do not count.

Options: --quick, for fewer epochs and runs; --out DIR, the folder for the picture.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, linear
from torch.utils._pytree import tree_map

from rai_chain import chain, sgd, top_q
from rai_chain.optim import ChainedParamTransformingOptimizer

RATES = [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
SPARSITIES = [0.0, 0.9, 0.98, 0.995]
HIDDEN, BATCH, HELD_OUT, MOMENTUM = 32, 64, 450, 0.8

TX = chain(top_q(q=0.0, param_ndim="tree"), sgd(lr=0.1, momentum=MOMENTUM))

# ------------------------------------------------------------------ one network


def predict(params: dict[str, Tensor], images: Tensor) -> Tensor:
    """The logits (N, 10) of images (N, 64)."""
    hidden = linear(images, params["w1"], params["b1"]).relu()
    return linear(hidden, params["w2"], params["b2"])


def loss(params: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(predict(params, images), labels)


def accuracy(params: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return (predict(params, images).argmax(1) == labels).float().mean()


def step(
    params: Any, state: Any, hyperparams: Any, images: Tensor, labels: Tensor
) -> tuple[Any, Any]:
    """One training step, which knows nothing of other networks."""
    grads = grad(loss)(params, images, labels)
    return TX.step(params, grads, state, hyperparams=hyperparams)


# ------------------------------------------------------------------ one, or all


def train(
    step: Callable[..., Any], members: Any, orders: Tensor, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Train one network, or all with a step under vmap, on the batches of `orders`."""
    params, state, hyperparams = members
    for order in orders:
        params, state = step(params, state, hyperparams, images[order], labels[order])
    return params


def train_with_optimizer(
    member: Any, orders: Tensor, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Train one network in an ordinary loop."""
    start, _, hyperparams = member
    params = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    q, lr = hyperparams["q"].item(), hyperparams["lr"].item()
    optim = ChainedParamTransformingOptimizer(
        top_q(q, param_ndim="tree"), params=list(params.values()), lr=lr, momentum=MOMENTUM
    )
    for order in orders:
        optim.zero_grad()
        loss(params, images[order], labels[order]).backward()
        optim.step()
    return params


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the seconds that the processor spends on what is inside."""
    began = time.process_time()
    yield
    seconds.append(time.process_time() - began)


def starts(count: int) -> dict[str, Tensor]:
    """Parameters of `count` networks, stacked."""
    shapes = {"w1": (HIDDEN, 64), "b1": (HIDDEN,), "w2": (10, HIDDEN), "b2": (10,)}
    params = {name: torch.zeros(count, *shape) for name, shape in shapes.items()}
    for name in ("w1", "w2"):
        torch.nn.init.normal_(params[name], std=shapes[name][1] ** -0.5)
    return params


# ------------------------------------------------------------------ the picture


def draw(path: Path, table: Any, count: int) -> None:
    """A heat map of accuracy (%), sparsity by learning rate; the best of each row framed."""
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=150)
    axis = figure.subplots()
    image = axis.imshow(table, cmap="viridis", aspect="auto", vmin=0, vmax=100)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            color = "black" if value > 60 else "white"
            weight = "bold" if value == row.max() else "normal"
            label = f"{value:.1f}"
            axis.text(j, i, label, color=color, weight=weight, ha="center", va="center")
    axis.set(
        title=f"{table.size} networks in one vmap (bold: the best of a row)",
        xlabel="learning rate",
        ylabel="fraction of the gradient dropped, q",
        xticks=range(len(RATES)),
        yticks=range(len(SPARSITIES)),
        xticklabels=[f"{rate:g}" for rate in RATES],
        yticklabels=[f"{q:g}" for q in SPARSITIES],
    )
    figure.colorbar(image, label=f"accuracy on {count} held-out images (%)")
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def main() -> dict[str, Any]:
    """Train all at once, then some one by one; print, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="32 networks trained at once.")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, fewer runs alone")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    epochs, alone = (2, 2) if options.quick else (20, 32)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    shuffled = torch.randperm(len(images))
    images, labels = images[shuffled], labels[shuffled]
    held_out, data = (images[:HELD_OUT], labels[:HELD_OUT]), (images[HELD_OUT:], labels[HELD_OUT:])

    q, lr = torch.meshgrid(torch.tensor(SPARSITIES), torch.tensor(RATES), indexing="ij")
    hyperparams = {"lr": lr.flatten(), "q": q.flatten()}
    count = lr.numel()
    params = starts(count)
    members = params, vmap(TX.init)(params), hyperparams
    size = len(data[0]) // BATCH * BATCH
    orders = torch.stack([torch.randperm(len(data[0])) for _ in range(epochs * count)])
    orders = orders[:, :size].reshape(epochs, count, -1, BATCH).transpose(1, 2).flatten(0, 1)

    member = tree_map(lambda leaf: leaf[0], members)  # first calls are slower: before the clock
    train(vmap(step), members, orders[:3], *data)
    train(step, member, orders[:3, 0], *data)
    train_with_optimizer(member, orders[:3, 0], *data)
    seconds: dict[str, list[float]] = {"vmap": [], "same function": [], "optimizer": []}
    with timed(seconds["vmap"]):
        together = train(vmap(step), members, orders, *data)
    accuracies = vmap(accuracy, in_dims=(0, None, None))(together, *held_out)
    table = accuracies.reshape(q.shape)

    print(f"{TX}\n\naccuracy of {count} networks on {HELD_OUT} held-out images, {epochs} epochs:\n")
    print("    q   lr " + "".join(f"{rate:8g}" for rate in RATES))
    for sparsity, row in zip(SPARSITIES, table.tolist(), strict=True):
        print(f"{sparsity:5g}      " + "".join(f"{value:8.1%}" for value in row))

    apart = []
    for i in torch.linspace(0, count - 1, alone).long().tolist():
        member = tree_map(lambda leaf, i=i: leaf[i], members)
        with timed(seconds["same function"]):
            own = train(step, member, orders[:, i], *data)
        with timed(seconds["optimizer"]):
            train_with_optimizer(member, orders[:, i], *data)
        apart.append(abs(accuracy(own, *held_out) - accuracies[i]).item())

    how = "measured" if alone == count else f"{alone} runs measured, extrapolated to {count}"
    total = {name: sum(runs) * count / len(runs) for name, runs in seconds.items() if len(runs) > 1}
    (all_at_once,) = seconds["vmap"]
    factors = {name: value / all_at_once for name, value in total.items()}
    print(f"\n{len(orders)} steps of {count} networks in one vmap: {all_at_once:.1f} s")
    print(f"one network after the other ({how}):")
    print(f"    the same function: {total['same function']:.1f} s", end=", ")
    print(f"vmap is faster by a factor of {factors['same function']:.1f}")
    print(f"    an ordinary loop: {total['optimizer']:.1f} s", end=", ")
    print(f"vmap is faster by a factor of {factors['optimizer']:.1f}")
    print(f"accuracies, one after the other and in the vmap: at most {max(apart):.2%} apart")

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "ensemble.png"
    draw(picture, 100 * table.numpy(), HELD_OUT)
    print("\npicture:", picture)
    return {"table": table, "factors": factors, "apart": max(apart), "pictures": [picture]}


if __name__ == "__main__":
    results = main()
