"""What ranks send each other in a step, on up to 100,000 ranks: `python -m benchmarks.scale`.

The engine itself runs, for one rank of a world in which all others have the same shards: a sum
over ranks is so many times what is here, a maximum is what is here. So the number of collectives
and their bytes are those of the engine, and `tests/distributed` sees that ranks which do share
tensors send the same. How long a collective takes is assumed: see `LATENCY` and `BANDWIDTH`.

Tensors of a network are taken to be alike: what travels for one of them travels for each, in the
same collectives.
"""

import argparse
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import ceil, log2
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from matplotlib.figure import Figure

import rai_chain as rc

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "measured"
LATENCY = 10e-6  # seconds of a hop in the network of a large cluster
BANDWIDTH = 25e9  # bytes a second that a rank sends
SHOWN = 1000, 64  # elements of a tensor that a rank has, and ranks, in the table of links

LINKS: dict[str, Callable[[int | None], Any]] = {
    "`clamp`, `sign`, `ema`, `adam`, `add_noise`, all of elements": lambda n: rc.chain(
        rc.clamp(-1.0, 1.0), rc.sign(), rc.ema(0.9), rc.scale_by_adam(), rc.add_noise(std=0.1)
    ),
    "`top_q`, `top_k`, `error_feedback` of them": lambda n: rc.error_feedback(
        rc.top_q(0.99, param_ndim=n)
    ),
    "`centralize`, `normalize(1)`": lambda n: rc.normalize(1, param_ndim=n),
    "`normalize`, `clip_by_norm`": lambda n: rc.normalize(param_ndim=n),
    "`clip_by_global_norm`": lambda n: rc.clip_by_global_norm(0.1),
    "`record` of a sparsity": lambda n: rc.record("sparsity", rc.sparsity),
    "`l2_ball`": lambda n: rc.l2_ball(0.5, param_ndim=n),
    "`l1_ball`": lambda n: rc.l1_ball(0.5, param_ndim=n),
    "`simplex`": lambda n: rc.simplex(param_ndim=n),
}
TOP, NORM, BALL = (list(LINKS)[i] for i in (1, 4, 7))


class Network(NamedTuple):
    """Tensors of equal size, each shared by all ranks."""

    name: str
    ranks: int
    tensors: int
    elements: float

    @property
    def here(self) -> int:
        """Elements of a tensor that a rank has, a multiple of 100."""
        return 100 * ceil(self.elements / self.ranks / self.tensors / 100)


NETWORKS = (
    Network("ResNet-50", 8, 161, 25.6e6),
    Network("7B", 64, 291, 7e9),
    Network("70B", 1024, 723, 7e10),
    Network("1T", 16_384, 2000, 1e12),
    Network("1T", 100_000, 2000, 1e12),
)

# ------------------------------------------------------------------ what the engine sends


@contextmanager
def alike() -> Iterator[list[int]]:
    """Reductions over ranks that all have what is here; the bytes of each are listed."""
    from torch.distributed import _functional_collectives as functional

    sent: list[int] = []

    def all_reduce(x: Any, op: str, group: Any) -> Any:
        sent.append(x.numel() * x.element_size())
        mesh, dim = group
        return x * mesh.size(dim) if op == "sum" else x

    with (
        patch.object(functional, "all_reduce", all_reduce),
        patch.object(functional, "wait_tensor", lambda x: x),
    ):
        yield sent


@contextmanager
def world(ranks: int) -> Iterator[None]:
    """A process group of so many ranks, of which there is the first one only."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class Shards(NamedTuple):
    """Tensors that are cut alike, and what a row of them is."""

    shape: tuple[int, ...]  # of what a rank has of each
    dim: int = 0  # that the ranks cut
    param_ndim: int | None = None  # None: a tensor is one row


def use(link: str, shards: Shards, mesh: Any, tensors: int = 1) -> list[Any]:
    """A link on shards that are the same on each rank; what comes out."""
    from torch.distributed.tensor import DTensor, Shard

    local = torch.randn(shards.shape, generator=torch.Generator().manual_seed(0))
    full = [n * mesh.size() if d == shards.dim else n for d, n in enumerate(shards.shape)]
    whole = {"shape": torch.Size(full), "stride": torch.empty(full, device="meta").stride()}
    cut = [Shard(shards.dim)]
    leaves = [
        DTensor.from_local(local, mesh, cut, run_check=False, **whole) for _ in range(tensors)
    ]
    tx = rc.chain(LINKS[link](shards.param_ndim))
    with torch.no_grad():
        if all(one.phase == "gradient" for one in tx.links):
            return list(tx.update(leaves, tx.init(leaves), params=leaves)[0])
        return list(tx.step(leaves, [0 * leaf for leaf in leaves], tx.init(leaves))[0])


@cache
def messages(link: str, shards: Shards, ranks: int) -> list[int]:
    """The bytes of each collective of a link, for one tensor."""
    from torch.distributed.device_mesh import init_device_mesh

    with world(ranks), alike() as sent:
        use(link, shards, init_device_mesh("cpu", (ranks,)))
    return sent


# ------------------------------------------------------------------ what that costs


def seconds(size: float, ranks: int) -> float:
    """The time of a sum over ranks of so many bytes: along a tree and back, halves at once."""
    return 2 * log2(ranks) * LATENCY + 2 * size / BANDWIDTH


def gathered(network: Network) -> float:
    """The time in which each rank gets all of a float32 tensor after the other."""
    size = 4 * network.elements * (network.ranks - 1) / network.ranks
    return network.tensors * log2(network.ranks) * LATENCY + size / BANDWIDTH


class Cost(NamedTuple):
    """Of a link, for a rank and a step."""

    collectives: int
    bytes: float
    seconds: float


def cost(link: str, network: Network, *, together: bool = True) -> Cost:
    """Of all tensors of a network: in the same collectives, or one tensor after the other."""
    sent = messages(link, Shards((network.here,)), network.ranks)
    times = 1 if together else network.tensors
    each = [size * network.tensors / times for size in sent]
    time = times * sum(seconds(size, network.ranks) for size in each)
    return Cost(times * len(sent), network.tensors * sum(sent), time)


def sent_by_hook(kept: float, ranks: int) -> float:
    """What `pipeline_hook` sends of float32 gradients, as a multiple of their sum's."""
    return min(kept * ranks, 1.0)  # 8 bytes for each kept, to each rank, or 8 for each of all


# ------------------------------------------------------------------ tables and picture


def short(value: float, *units: str) -> str:
    """With two digits, in a unit that is 1000 times the one before."""
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 9.95 else f"{value:.2g} {units[0]}"


def amount(size: float) -> str:
    return short(size, "B", "kB", "MB", "GB", "TB")


def duration(time: float) -> str:
    return short(1e3 * time, "ms", "s")


def links_table() -> str:
    """What travels, by link: where a rank has whole rows, and where ranks share each row."""
    here, ranks = SHOWN
    head = ("link", "whole rows", "shared rows", "bytes for each shared row")
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---|"]
    for link in LINKS:
        rows = len(messages(link, Shards((10, here // 10), 0, -1), ranks))
        sent = messages(link, Shards((here,)), ranks)
        cells = (link, rows or "nothing", len(sent) or "nothing", sum(sent) or "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def networks_table() -> str:
    """What some links cost in networks whose tensors all ranks share."""
    head = (
        "network, ranks",
        "tensors",
        "`top_q`",
        "one by one",
        "`clip_by_global_norm`",
        "`l1_ball`",
        "gathered instead",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for one in NETWORKS:
        costs = [cost(link, one) for link in (TOP, NORM, BALL)]
        apart = cost(TOP, one, together=False)
        top, norm, ball = (
            f"{c.collectives}: {amount(c.bytes)}, {duration(c.seconds)}" for c in costs
        )
        cells = (
            f"{one.name}, {one.ranks:,}",
            str(one.tensors),
            top,
            f"{apart.collectives:,}: {duration(apart.seconds)}",
            norm,
            ball,
            f"{amount(4 * one.elements)}, {duration(gathered(one))}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ways_table(results: dict[str, Any]) -> str:
    """What examples/fsdp.py found."""
    first = f"{results['weights']:,} weights, {results['ways']['DDP']['curve'][-1][0]} steps"
    lines = [f"| {first} | sent in a step | collectives | held-out loss |", "|---|---|---|---|"]
    for way, row in results["ways"].items():
        cells = way, amount(row["bytes"]), f"{row['collectives']:.1f}", f"{row['loss']:.3f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """The time of a step against ranks, and what the hook sends."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ranks = [1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]
    sizes = [Network("", n, 2000, 1e12) for n in ranks]
    lines = {
        "all gathered": [gathered(one) for one in sizes],
        "top_q, one tensor after the other": [
            cost(TOP, one, together=False).seconds for one in sizes
        ],
        "l1_ball": [cost(BALL, one).seconds for one in sizes],
        "top_q": [cost(TOP, one).seconds for one in sizes],
        "clip_by_global_norm": [cost(NORM, one).seconds for one in sizes],
    }
    colors = ("#c0392b", "#d9731a", "#4f9d69", "#0b5fa5", "#8c8c8c")
    for (name, times), color in zip(lines.items(), colors, strict=True):
        left.plot(ranks, times, "o-", ms=3, color=color, label=name)
    left.set(xscale="log", yscale="log", xlabel="ranks", ylabel="seconds a step, on paper")
    left.set_title("2,000 tensors that all ranks share, 10$^{12}$ elements")
    left.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1, 0.47))
    ranks = [2**n for n in range(1, 14)]
    for kept, color in ((0.1, "#a8d3f2"), (0.01, "#5aa2dc"), (0.001, "#0b5fa5")):
        shares = [sent_by_hook(kept, n) for n in ranks]
        right.plot(ranks, shares, "o-", ms=3, color=color, label=f"{kept:.1%} of each gradient")
    right.set(xscale="log", yscale="log", xlabel="ranks")
    right.set_ylabel("what a rank sends, of what a sum takes")
    right.set_title("pipeline_hook: each rank sends to all others")
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(color="#dddddd", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    about = f"{1e6 * LATENCY:g} µs a hop, {BANDWIDTH / 1e9:g} GB/s a rank"
    figure.supxlabel(
        f"assumed: {about}; collectives and bytes are the engine's", fontsize=8, color="#555555"
    )
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Compute the tables, draw; and train, as the example does."""
    parser = argparse.ArgumentParser(description="What ranks send each other, on paper.")
    parser.add_argument("--quick", action="store_true", help="without training in two processes")
    parser.add_argument("--pictures", type=Path, default=HERE, help="folder of the pictures")
    parser.add_argument("--tables", type=Path, default=DOCS, help="folder of the tables")
    options = parser.parse_args(arguments)
    tables = {"links": links_table(), "networks": networks_table()}
    draw(options.pictures / "scale.png")
    if not options.quick:
        own = ["fsdp.py", "--out", str(options.pictures)]
        with patch.object(sys, "argv", own):
            example = runpy.run_path(str(HERE.parent / "examples" / "fsdp.py"), run_name="__main__")
        tables["ways"] = ways_table(example["results"])
    options.tables.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (options.tables / f"{name}.txt").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
