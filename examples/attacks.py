"""Attacks on handwritten digits: how far must an image be changed until a network misreads it?

An attack changes each pixel a little, so that a network which read the image right reads it wrong;
epsilon is the most that it may change: each pixel by epsilon (Linf), or all pixels together, their
changes squared, summed and the root taken (L2), or just summed up (L1), where 1 is from black to
white. The curves show how many images are still read right as epsilon grows: the lower the curve,
the stronger the attack, and the lowest one is the most that the network can be trusted with.

All attacks are lines of `rai_chain.attacks`. They are set beside the same ones of foolbox,
torchattacks and rai-toolbox, as far as these are installed: same images, same number of steps.

Digits: `sklearn.datasets.load_digits`.
"""

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from rai_chain import box, chain, feasible, frank_wolfe_step, l1_ball, l1q_oracle
from rai_chain.attacks import apgd, attack, fgsm, frank_wolfe, mi_fgsm, pgd, slide

HELD_OUT = 450  # images
NAMES = {math.inf: "Linf", 2: "L2", 1: "L1"}
SHOWN = {math.inf: 0.12, 2: 0.8, 1: 2.5}  # the radius of the table and of the images
PART = 0.1  # a step of those that have a size, in radii

# ------------------------------------------------------------------ the attacks

Attack = Callable[[nn.Module, Tensor, Tensor, Any], Tensor]


class Row(NamedTuple):
    """A line of the table."""

    norm: float
    attack: str
    library: str
    right: float  # the fraction of images that are still read right
    seconds: float
    difference: float | None  # the largest of a pixel, to ours where the algorithm is the same


def ours(steps: int) -> dict[tuple[float, str], Attack]:
    """Norm, name -> the attack."""

    def sized(kind: Callable[..., Tensor], **options: Any) -> Attack:
        return lambda net, images, labels, epsilon: kind(
            net, images, labels, epsilon, step_size=PART * epsilon, steps=steps, **options
        )

    found: dict[tuple[float, str], Attack] = {}
    for norm in NAMES:
        found[norm, "FGSM" if norm == math.inf else "FGM"] = partial(fgsm, norm=norm)
        found[norm, "PGD"] = sized(pgd, norm=norm, random_start=False, best=False)
        if norm == math.inf:
            found[norm, "MI-FGSM"] = sized(mi_fgsm, best=False)
        if norm == 1:
            found[norm, "SLIDE"] = sized(slide, q=0.9)
            found[norm, "L1q"] = partial(sparse_frank_wolfe, steps=steps)
        found[norm, "Frank-Wolfe"] = partial(frank_wolfe, norm=norm, steps=steps)
        found[norm, "APGD"] = partial(apgd, norm=norm, steps=steps)
    return found


def sparse_frank_wolfe(
    net: nn.Module, images: Tensor, labels: Tensor, epsilon: Any, steps: int
) -> Tensor:
    """An attack of one's own: steps towards a tenth of the pixels at once, not towards one."""
    oracle = chain(feasible(0.0, 1.0), l1q_oracle(0.9, epsilon, images))
    tx = chain(oracle, frank_wolfe_step(), l1_ball(epsilon, images), box(0.0, 1.0))
    return attack(net, images, labels, tx, steps)


def peers(steps: int) -> dict[tuple[float, str, str], tuple[Attack, bool]]:
    """Norm, name, library -> the attack of an installed library, and if its images are ours."""
    found: dict[tuple[float, str, str], tuple[Attack, bool]] = {}

    def have(library: str) -> bool:
        return importlib.util.find_spec(library) is not None

    if have("foolbox"):
        import foolbox

        def of_foolbox(name: str, **options: Any) -> Attack:
            def run(net: nn.Module, images: Tensor, labels: Tensor, epsilon: Any) -> Tensor:
                model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
                own = getattr(foolbox.attacks, name)(**options)
                return own(model, images, labels, epsilons=epsilon)[1]

            return run

        own = {"steps": steps, "rel_stepsize": PART, "random_start": False}
        for norm, name in NAMES.items():
            found[norm, "PGD", "foolbox"] = of_foolbox(f"{name}PGD", **own), norm != 1
        sparse = of_foolbox("SparseL1DescentAttack", quantile=0.9, **own)
        found[1, "SLIDE", "foolbox"] = sparse, False
    if have("torchattacks"):
        import torchattacks

        def of_torchattacks(name: str, step: float = 0.0, **options: Any) -> Attack:
            def run(net: nn.Module, images: Tensor, labels: Tensor, epsilon: Any) -> Tensor:
                size = {"alpha": step * epsilon} if step else {}
                own = getattr(torchattacks, name)(net, eps=epsilon, **size, **options)
                return own(images, labels)

            return run

        own = {"step": PART, "steps": steps}
        for norm, kind, small in ((math.inf, "PGD", {}), (2, "PGDL2", {"eps_for_division": 1e-30})):
            attack = of_torchattacks(kind, random_start=False, **small, **own)
            found[norm, "PGD", "torchattacks"] = attack, True
            attack = of_torchattacks("APGD", norm=NAMES[norm], steps=steps)
            found[norm, "APGD", "torchattacks"] = attack, False
        found[math.inf, "MI-FGSM", "torchattacks"] = of_torchattacks("MIFGSM", **own), True
    if have("rai_toolbox"):
        from rai_toolbox import optim
        from rai_toolbox.perturbations import gradient_ascent

        def of_rai_toolbox(kind: Any, **options: Any) -> Attack:
            def run(net: nn.Module, images: Tensor, labels: Tensor, epsilon: Any) -> Tensor:
                own = {"optimizer": kind, "epsilon": epsilon, "steps": steps, **options}
                own |= {} if "lr" in options else {"lr": PART * epsilon}
                images, _ = gradient_ascent(model=net, data=images, target=labels, **own)
                return images.clamp(0.0, 1.0)  # it knows of no interval

            return run

        for norm, kind in ((math.inf, optim.LinfProjectedOptim), (2, optim.L2ProjectedOptim)):
            found[norm, "PGD", "rai-toolbox"] = of_rai_toolbox(kind), False
        sparse = of_rai_toolbox(optim.L1qFrankWolfe, q=0.9, lr=2.0)
        found[1, "L1q", "rai-toolbox"] = sparse, False
    return found


def compare(
    net: nn.Module, images: Tensor, labels: Tensor, steps: int, rounds: int
) -> tuple[list[Row], dict[tuple[float, str], Tensor]]:
    """The table at the radii `SHOWN`, and the images of our attacks."""
    own, rows, found = ours(steps), [], {}
    others = peers(steps)
    for (norm, name), mine in tqdm(own.items(), desc="attacks, one radius"):
        beside = {lib: pair for (n, a, lib), pair in others.items() if (n, a) == (norm, name)}
        for library, (run, same) in {"rai_chain": (mine, False), **beside}.items():
            seconds = []
            for _ in range(rounds):
                start = time.perf_counter()
                attacked = run(net, images, labels, SHOWN[norm])
                seconds.append(time.perf_counter() - start)
            if library == "rai_chain":
                found[norm, name] = attacked
                check(attacked, images, SHOWN[norm], norm)
            apart = (attacked - found[norm, name]).abs().max().item() if same else None
            right = accuracy(net, attacked, labels)
            rows.append(Row(norm, name, library, right, min(seconds), apart))
    return rows, found


def curves(
    net: nn.Module, images: Tensor, labels: Tensor, steps: int, count: int
) -> dict[float, dict[str, list[float]]]:
    """Norm -> attack -> the fraction still right at each radius, from 0 to twice that shown.

    All radii are attacked at once: each image has a radius of its own.
    """
    found: dict[float, dict[str, list[float]]] = {norm: {} for norm in NAMES}
    parts = torch.linspace(0.0, 2.0, count + 1)
    many, known = images.repeat(len(parts), 1, 1, 1), labels.repeat(len(parts))
    for (norm, name), mine in tqdm(ours(steps).items(), desc="attacks, all radii"):
        if name in COLORS:
            radii = (parts * SHOWN[norm]).repeat_interleave(len(images))
            attacked = mine(net, many, known, radii)
            check(attacked, many, radii, norm)
            right = net(attacked).argmax(1) == known
            found[norm][name] = right.view(len(parts), -1).float().mean(1).tolist()
    return found


def check(attacked: Tensor, images: Tensor, epsilon: Any, norm: float) -> None:
    """Every image lies in its ball and in the interval: no tolerance but that of float64."""
    lengths = torch.linalg.vector_norm((attacked.double() - images.double()).flatten(1), norm, 1)
    bound = torch.as_tensor(epsilon, dtype=torch.float64) * (1 + 1e-12)
    assert (lengths <= bound).all(), "an image has left its ball"
    assert ((attacked >= 0) & (attacked <= 1)).all(), "a pixel has left its interval"


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images that the network reads right."""
    return (net(images).argmax(1) == labels).float().mean().item()


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


# ------------------------------------------------------------------ the picture

COLORS = {
    **{"FGSM": "#999999", "FGM": "#999999"},
    **{"PGD": "#0072b2", "SLIDE": "#009e73", "APGD": "#d55e00"},
}
TITLES = {
    math.inf: "each pixel changes by at most ε (Linf)",
    2: "root of the summed squares at most ε (L2)",
    1: "all changes add up to at most ε (L1)",
}


def draw(
    path: Path,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    found: dict[tuple[float, str], Tensor],
    table: dict[float, dict[str, list[float]]],
) -> None:
    """Accuracy against the radius for three balls, and below a row of images for each of them."""
    figure = Figure(figsize=(13, 9.2), layout="constrained", dpi=120)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    above.suptitle("How many digits does the network still read right, if all may be changed by ε?")
    for axis, (norm, rows) in zip(above.subplots(1, 3, sharey=True), table.items(), strict=True):
        for name, right in rows.items():
            radii = torch.linspace(0.0, 2.0 * SHOWN[norm], len(right)).tolist()
            percent = [100 * value for value in right]
            axis.plot(radii, percent, color=COLORS[name], marker="o", markersize=4, label=name)
        axis.axvline(SHOWN[norm], color="black", linewidth=1, linestyle=":")
        axis.text(SHOWN[norm], 101, " as below", fontsize="small", va="top")
        axis.set(title=TITLES[norm], xlabel="ε (1 is from black to white)", ylim=(0, 103))
        axis.set_xlim(0, 2 * SHOWN[norm])
        axis.grid(alpha=0.3)
        axis.legend(loc="upper right", title="attack")
    above.axes[0].set_ylabel("still read right (%)")

    chosen = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    rows = {"the image": images} | {
        f"{NAMES[norm]}, ε = {SHOWN[norm]}": found[norm, "APGD"] for norm in NAMES
    }
    below.suptitle("The images, and what they become under APGD; above each what the network reads")
    grid = below.subplots(len(rows), len(chosen), subplot_kw={"xticks": [], "yticks": []})
    for axes, (name, shown) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name)
        read = net(shown[chosen]).argmax(1)
        for axis, place, guess in zip(axes, chosen, read.tolist(), strict=True):
            axis.imshow(shown[place, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            wrong = guess != labels[place]
            axis.set_title(
                f"{guess}",
                color="firebrick" if wrong else "black",
                fontweight="bold" if wrong else "normal",
                fontsize="medium",
                pad=3,
            )
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def main() -> dict[str, Any]:
    """Train, attack, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="Attacks on handwritten digits.")
    parser.add_argument("--quick", action="store_true", help="fewer images, radii and steps")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    epochs, count, steps, radii = (6, 100, 10, 4) if options.quick else (30, 200, 20, 8)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    images, labels = load()
    net = train(images[HELD_OUT:], labels[HELD_OUT:], epochs)
    clean = accuracy(net, images[:HELD_OUT], labels[:HELD_OUT])
    assert clean > 0.97 or options.quick

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other libraries
        rows, found = compare(net, images[:count], labels[:count], steps, 1 if options.quick else 2)
    table = curves(net, images[:count], labels[:count], steps, radii)

    print("\n" + str(__doc__).split("\n\n")[1])
    print(f"\nThe network reads {clean:.1%} of {HELD_OUT} new images right. Of {count} are left,")
    print(f"after {steps} steps (FGSM, FGM: one):\n")
    print("ball          attack       library       still right   seconds   largest difference")
    for row in rows:
        ball = f"{NAMES[row.norm]}, {SHOWN[row.norm]}"
        apart = "" if row.difference is None else f"{row.difference:.0e}"
        print(
            f"{ball:13} {row.attack:12} {row.library:13} {row.right:11.1%} {row.seconds:9.2f}"
            f"   {apart}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = [options.out / "attacks.png"]
    draw(pictures[0], net, images, labels, found, table)
    print("\npicture:", *pictures)
    return {"clean": clean, "rows": rows, "curves": table, "pictures": pictures}


if __name__ == "__main__":
    results = main()
