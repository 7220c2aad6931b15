"""Sparse attacks on handwritten digits: two pipelines that differ by two links, in two homes.

A small convolutional network learns the 8x8 digits that come with scikit-learn. Two attacks then
look, in the L1 ball around each held-out image, for an image that the network gets wrong:

    L1-PGD               normalize(1), scale, l1_ball, box    step along the gradient
    SLIDE   top_q, sign, normalize(1), scale, l1_ball, box    step along its few largest elements

Both take equally many steps of the same L1 length, a tenth of the radius, and then SLIDE is by far
the stronger. The step length matters: the projection onto an L1 ball is itself sparse, so that
L1-PGD draws level at 0.4 of the radius, and with steps as long as the radius it is a little ahead.

Each attack runs in two homes with the same links: as a pure function of one image and one radius,
which `torch.func.vmap` puts on all images and radii at once, and as a torch optimizer whose
parameter is a batch of images.

SLIDE: Tramer and Boneh 2019, arXiv 1904.13000. Digits: `sklearn.datasets.load_digits`.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from rai_chain import GradientTransformation, box, chain, l1_ball, normalize, scale, sign, top_q
from rai_chain.optim import ChainedParamTransformingOptimizer

IMAGE = 3  # dimensions of one row: channel, height, width. The same with a batch and without.
STEP = 0.1  # L1 length of a step, in radii of the ball
HELD_OUT = 450  # images
SHOWN = 2.5  # the radius of the picture and of the comparison

Pipeline = Callable[[Tensor | float, Tensor | None], GradientTransformation]

# ------------------------------------------------------------------ the two attacks


def l1_pgd(epsilon: Tensor | float, center: Tensor | None = None) -> GradientTransformation:
    """Step along the gradient over its L1 norm; stay in the ball and in the pixel box.

    The box comes last and keeps the ball: the center lies in the box, so that clamping a pixel
    moves it towards its center.
    """
    return chain(
        normalize(1, param_ndim=IMAGE),
        scale(STEP * epsilon),
        l1_ball(epsilon, center, param_ndim=IMAGE),
        box(0.0, 1.0),
    )


def slide(epsilon: Tensor | float, center: Tensor | None = None) -> GradientTransformation:
    """Step along the signs of the gradient's largest elements, else as `l1_pgd`."""
    return chain(top_q(0.9, param_ndim=IMAGE), sign(), l1_pgd(epsilon, center))


ATTACKS: dict[str, Pipeline] = {"L1-PGD": l1_pgd, "SLIDE": slide}

# ------------------------------------------------------------------ the two homes


def attack_pure(
    pipeline: Pipeline,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    steps: Iterable[int],
) -> Tensor:
    """The attack on one image within one radius, under `vmap`: adversarial images (R, N, ...)."""

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(net(image[None]), label[None])

    def attack(image: Tensor, label: Tensor, epsilon: Tensor) -> Tensor:
        tx = pipeline(epsilon, image)
        adversarial, state = image, tx.init(image)
        for _ in steps:
            gradient = grad(loss)(adversarial, label)
            adversarial, state = tx.step(adversarial, gradient, state)
        return adversarial

    on_images = vmap(attack, in_dims=(0, 0, None))
    return vmap(on_images, in_dims=(None, None, 0))(images, labels, radii)


def attack_with_optimizer(
    pipeline: Pipeline,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    steps: Iterable[int],
) -> tuple[Tensor, Tensor]:
    """The attack on a batch: adversarial images (N, ...) and the gradients met (T, N, ...)."""
    adversarial = images.clone().requires_grad_()
    tx = pipeline(epsilon, images)
    optim = ChainedParamTransformingOptimizer(tx, params=[adversarial], lr=1.0, maximize=True)
    gradients = []
    for _ in steps:
        optim.zero_grad()
        cross_entropy(net(adversarial), labels, reduction="sum").backward()
        gradients.append(adversarial.grad.clone())
        optim.step()
    return adversarial.detach(), torch.stack(gradients)


def replay(pipeline: Pipeline, images: Tensor, gradients: Tensor, epsilon: Tensor) -> Tensor:
    """The pure pipeline on given gradients: adversarial images (N, ...), one image per lane."""

    def follow(image: Tensor, own: Tensor) -> Tensor:
        tx = pipeline(epsilon, image)
        adversarial, state = image, tx.init(image)
        for gradient in own:
            adversarial, state = tx.step(adversarial, gradient, state)
        return adversarial

    return vmap(follow, in_dims=(0, 1))(images, gradients)


# ------------------------------------------------------------------ the network


def load() -> tuple[Tensor, Tensor]:
    """The digits, shuffled: images (1797, 1, 8, 8) in [0, 1] and labels (1797,)."""
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return images[order], torch.tensor(digits.target)[order]


def train(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A convolutional network fitted to the images, frozen."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.3)),
        nn.Linear(64, 10),
    )
    optim = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, epochs)
    for _ in tqdm(range(epochs), desc="train"):
        for batch in torch.randperm(len(images)).split(64):
            optim.zero_grad()
            cross_entropy(net(images[batch]), labels[batch]).backward()
            optim.step()
        schedule.step()
    return net.eval().requires_grad_(False)


# ------------------------------------------------------------------ what is checked


def check_constraints(adversarial: Tensor, images: Tensor, radii: Tensor) -> None:
    """Every image lies in its ball and in the box, without any tolerance: distances in float64."""
    length = (adversarial.double() - images.double()).abs().sum((2, 3, 4))
    assert (length <= radii[:, None]).all(), "an image has left its L1 ball"
    assert ((adversarial >= 0) & (adversarial <= 1)).all(), "a pixel has left its box"


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images that the network labels correctly."""
    return (net(images).argmax(1) == labels).float().mean().item()


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two pixels, 0 where the bits are equal."""
    return (a - b).abs().max().item()


# ------------------------------------------------------------------ pictures


def draw_digits(
    path: Path, net: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor
) -> None:
    """The first held-out image of each of eight digits, its perturbation, and their sum."""
    chosen = [int((labels == digit).nonzero()[0]) for digit in range(8)]
    before, after, labels = images[chosen], adversarial[chosen], labels[chosen]
    largest = (after - before).abs().max().item()
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1}
    diverging = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    rows = (
        ("original", "intensity", before, gray),
        ("perturbation", "change of intensity", after - before, diverging),
        ("adversarial", "intensity", after, gray),
    )
    figure = Figure(figsize=(12, 5.3), layout="constrained", dpi=150)
    figure.suptitle(
        rf"SLIDE within the L1 radius $\epsilon$ = {SHOWN}: true → predicted label (red: wrong)"
    )
    grid = figure.subplots(len(rows), len(chosen), subplot_kw={"xticks": [], "yticks": []})
    for axes, (name, unit, shown, style) in zip(grid, rows, strict=True):
        drawn = [axis.imshow(x[0], **style) for axis, x in zip(axes, shown.numpy(), strict=True)]
        axes[0].set_ylabel(name, fontsize="large")
        figure.colorbar(drawn[0], ax=axes, label=unit, aspect=10, pad=0.01)
    for axes, shown in ((grid[0], before), (grid[2], after)):
        for axis, true, guess in zip(axes, labels, net(shown).argmax(1), strict=True):
            axis.set_title(f"{true} → {guess}", color="black" if true == guess else "firebrick")
    figure.savefig(path)


def draw_curves(
    path: Path, radii: list[float], clean: float, table: dict[str, list[float]], steps: int
) -> None:
    """Accuracy against the radius of the ball."""
    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.axhline(100 * clean, color="black", linestyle="--", label="clean images")
    for name, color, marker in (("L1-PGD", "#0072b2", "s"), ("SLIDE", "#d55e00", "o")):
        percent = [100 * value for value in (clean, *table[name])]
        axis.plot([0.0, *radii], percent, color=color, marker=marker, label=name)
    axis.set(
        title=rf"Attacks of {steps} steps, each of L1 length {STEP:g}$\,\epsilon$",
        xlabel=r"L1 radius $\epsilon$ (in pixel intensities: black is 0, white is 1)",
        ylabel="accuracy on held-out images (%)",
        xlim=(0, None),
        ylim=(0, 103),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def main() -> dict[str, Any]:
    """Train, attack, compare the homes, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="Sparse attacks on handwritten digits.")
    parser.add_argument("--quick", action="store_true", help="fewer images, radii and steps")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    options = parser.parse_args()
    epochs, count, steps = (6, 120, 15) if options.quick else (30, HELD_OUT, 20)
    radii = torch.tensor([1.5, SHOWN] if options.quick else [0.5, 1.0, 1.5, 2.0, SHOWN, 3.0])
    shown = radii.tolist().index(SHOWN)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    images, labels = load()
    net = train(images[HELD_OUT:], labels[HELD_OUT:], epochs)
    images, labels = images[:count], labels[:count]
    clean = accuracy(net, images, labels)
    assert clean > 0.97 or options.quick

    found, table, differences = {}, {}, {}
    for name, pipeline in ATTACKS.items():
        bar = tqdm(range(steps), desc=f"{name}, pure")
        found[name] = attack_pure(pipeline, net, images, labels, radii, bar)
        check_constraints(found[name], images, radii)
        table[name] = [accuracy(net, adversarial, labels) for adversarial in found[name]]
        bar = tqdm(range(steps), desc=f"{name}, optimizer")
        batch, gradients = attack_with_optimizer(pipeline, net, images, labels, radii[shown], bar)
        replayed = replay(pipeline, images, gradients, radii[shown])
        differences[name] = distance(batch, replayed), distance(batch, found[name][shown])
        assert differences[name][0] == 0, "the homes differ on the same gradients"

    print(f"\n{slide(SHOWN)}\n\naccuracy on {count} held-out images, {steps} steps:\n")
    print("epsilon    clean   L1-PGD    SLIDE")
    for epsilon, *row in zip(radii.tolist(), *table.values(), strict=True):
        print(f"{epsilon:7.1f} " + " ".join(f"{value:8.1%}" for value in (clean, *row)))
    print(f"\nlargest difference of a pixel, pure loop against optimizer, epsilon = {SHOWN}:\n")
    print("        same gradients  whole attack (the network rounds differently under vmap)")
    for name, (same, whole) in differences.items():
        print(f"{name:6}  {same:14g}  {whole:12.1e}")

    options.out.mkdir(parents=True, exist_ok=True)
    pictures = [options.out / "sparse_attack_digits.png", options.out / "sparse_attack_curves.png"]
    draw_digits(pictures[0], net, images, found["SLIDE"][shown], labels)
    draw_curves(pictures[1], radii.tolist(), clean, table, steps)
    print("\npictures:", *pictures)
    return {"clean": clean, "table": table, "differences": differences, "pictures": pictures}


if __name__ == "__main__":
    results = main()
