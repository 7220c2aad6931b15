"""Two processes train one network: how much do they have to send each other?

A small transformer learns to continue the documentation that comes with Python, letter by letter.
Two processes share the work. Each reads other pages, and at every step both must agree on the
gradient: in which direction, and how far, each weight should move. On many machines training often
waits for what is sent. Five ways to share are compared, from the same start, on the same pages:

- DDP: each process holds the whole network, and all of every gradient is sent.
- DDP, PowerSGD: torch's own compression; matrices are sent as products of two thin ones.
- DDP, top 1%: each process sends the largest hundredth of its gradient, as places and values.
  That is `pipeline_hook` with a pipeline, `error_feedback(top_q(0.99))`, which keeps what was not
  sent and adds it to the next gradient.
- FSDP2: each process holds one half of each weight, for networks that fit into no machine. It
  fetches the other halves when it needs them, and keeps the sum of its half of the gradients.
- FSDP2, top 1%: the same pipeline, in an optimizer. It chooses among all elements of a tensor,
  though no process has them all. This saves no bytes, as FSDP2 has sent the whole gradient before
  any optimizer sees it; the table shows how little the choice adds.

Options: --quick, for fewer steps; --out DIR, the folder for the picture. With more processes:
torchrun --nproc-per-node 4 examples/fsdp.py
"""

import argparse
import os
import pydoc_data.topics
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rai_chain import GradientTransformation, error_feedback, top_q
from rai_chain.distributed import PipelineState, pipeline_hook
from rai_chain.optim import ChainedParamTransformingOptimizer

LETTERS, CONTEXT, WIDTH, LAYERS, BATCH = 128, 64, 64, 2, 32  # the batch of all processes
ADAM = {"lr": 0.005, "betas": (0.5, 0.999)}
HELD_OUT = 128  # pieces of text

# ------------------------------------------------------------------ the network and the text


class Writer(nn.Module):
    """How surprised is a transformer by each next letter of some text, on average?"""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = partial(nn.TransformerEncoderLayer, WIDTH, 4, 4 * WIDTH, dropout=0.0)
        options: Any = {"batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(layer(**options) for _ in range(LAYERS))
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS))

    def forward(self, text: Tensor) -> Tensor:
        """Cross-entropy of pieces of text (N, CONTEXT + 1)."""
        x = self.letters(text[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        for layer in self.layers:
            x = layer(x, mask, is_causal=True)
        return cross_entropy(self.out(x).flatten(0, 1), text[:, 1:].flatten())


def pieces(text: Tensor, count: int, seed: int) -> Tensor:
    """Pieces (count, CONTEXT + 1) from random places."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=g)
    return text[starts + torch.arange(CONTEXT + 1)]


# ------------------------------------------------------------------ the five ways


def top() -> GradientTransformation:
    return error_feedback(top_q(0.99, param_ndim=None))


def replicated(net: nn.Module, state: Any, hook: Any) -> tuple[nn.Module, Any]:
    model = DistributedDataParallel(net)
    model.register_comm_hook(state, hook)
    return model, torch.optim.Adam(model.parameters(), **ADAM)


def powersgd(net: nn.Module) -> tuple[nn.Module, Any]:
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return replicated(net, state, powerSGD_hook.powerSGD_hook)


def sharded(net: Writer, *links: GradientTransformation) -> tuple[nn.Module, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*net.layers, net):
        fully_shard(part, mesh=mesh)
    params = net.parameters()
    if not links:
        return net, torch.optim.Adam(params, **ADAM)
    return net, ChainedParamTransformingOptimizer(
        *links, params=params, InnerOpt=torch.optim.Adam, **ADAM
    )


WAYS = {
    "DDP": lambda net: replicated(net, None, default_hooks.allreduce_hook),
    "DDP, PowerSGD": powersgd,
    "DDP, top 1%": lambda net: replicated(
        net, PipelineState(top(), net.named_parameters()), pipeline_hook
    ),
    "FSDP2": sharded,
    "FSDP2, top 1%": lambda net: sharded(net, top()),
}

# ------------------------------------------------------------------ what is sent


# Collective -> which argument is what a process gives, and how many times that it sends where n
# processes form a ring.
RING: dict[tuple[Any, str], tuple[int, Callable[[int], float]]] = {
    (dist, "all_reduce"): (0, lambda n: 2 * (n - 1) / n),
    (functional, "all_reduce"): (0, lambda n: 2 * (n - 1) / n),
    (dist, "all_gather_single"): (1, lambda n: n - 1),
    (dist, "reduce_scatter_single"): (1, lambda n: (n - 1) / n),
}


@contextmanager
def counted(sent: Counter[str]) -> Iterator[None]:
    """Count collectives, and the bytes that this process sends for them."""

    def watched(collective: Any, place: int, times: float) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            given = args[place] if args else options["input"]
            sent.update(collectives=1, bytes=round(times * given.numel() * given.element_size()))
            return collective(*args, **options)

        return run

    world = dist.get_world_size()
    with ExitStack() as stack:
        for (module, name), (place, times) in RING.items():
            new = watched(getattr(module, name), place, times(world))
            stack.enter_context(patch.object(module, name, new))
        yield


# ------------------------------------------------------------------ one of the processes


def train(way: str, text: Tensor, held_out: Tensor, steps: int, bar: Any) -> dict[str, Any]:
    """Train in one way: what a step sends, and the curve (steps, bytes so far, held-out loss)."""
    torch.manual_seed(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    model, optimizer = WAYS[way](Writer())
    curve, sent = [], Counter[str]()
    for step in range(steps + 1):
        if step % (steps // 20) == 0:
            with torch.no_grad():
                curve.append((step, sent["bytes"], model(held_out).item()))
        own = pieces(text, BATCH, seed=step)[rank::world]
        with counted(sent):
            optimizer.zero_grad()
            model(own).backward()
            optimizer.step()
        bar.update()
    each = {name: number / (steps + 1) for name, number in sent.items()}
    return {"curve": curve, "loss": curve[-1][-1], **each}


def train_all(steps: int) -> dict[str, dict[str, Any]]:
    """What each of the processes does: way -> what `train` returns."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch to itself
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    topics = pydoc_data.topics.topics
    letters = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    text = torch.tensor(list(letters))
    text, rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    held_out = pieces(rest, HELD_OUT, seed=0)
    silent = dist.get_rank() > 0
    with tqdm(total=len(WAYS) * (steps + 1), desc="train", disable=silent) as bar:
        results = {way: train(way, text, held_out, steps, bar) for way in WAYS}
    dist.destroy_process_group()
    return results


# ------------------------------------------------------------------ the picture


def draw(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """The held-out loss of each way, against steps and against what was sent."""
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, sharey=True)
    looks = [
        ("black", "-"),
        ("#009e73", "-"),
        ("#0072b2", "-"),
        ("#e69f00", "--"),
        ("#d55e00", "--"),
    ]
    for (way, result), (color, line) in zip(results.items(), looks, strict=True):
        steps, sent, losses = zip(*result["curve"], strict=True)
        left.plot(steps, losses, line, color=color, label=f"{way}: {losses[-1]:.2f}")
        megabytes = [number / 1e6 for number in sent[1:]]
        right.plot(megabytes, losses[1:], line, color=color, label=way)
    left.set(xlabel="step", ylabel="cross-entropy of held-out letters")
    left.set(title="Learning to continue Python's documentation")
    left.legend(title="at the end")
    right.set(xlabel="megabytes that each process has sent", xscale="log")
    right.set(title="The same, against what was sent")
    right.xaxis.set_major_formatter("{x:g}")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path)


# ------------------------------------------------------------------ the run


def started(file: Path) -> dict[str, dict[str, Any]]:
    """This file in two processes: what the first one leaves in a file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = {"OMP_NUM_THREADS": "1", **os.environ}
    own = [__file__, *sys.argv[1:], "--results", str(file)]
    subprocess.run([*command, *own], env=here, check=True)
    results: dict[str, dict[str, Any]] = torch.load(file)
    return results


def main() -> dict[str, Any]:
    """Train in five ways, compare, draw; returns what it prints."""
    parser = argparse.ArgumentParser(description="What two processes send each other in training.")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if "RANK" in os.environ:
        results = train_all(20 if options.quick else 300)
        if options.results and os.environ["RANK"] == "0":
            torch.save(results, options.results)
        if options.results or os.environ["RANK"] != "0":
            return results
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = started(Path(folder) / "results.pt")

    weights = sum(p.numel() for p in Writer().parameters())
    print(f"A network of {weights:,} weights, {results['DDP']['curve'][-1][0]} steps.\n")
    print(f"{'':16}{'sent in a step':>17}{'collectives':>14}{'held-out loss':>16}")
    for way, row in results.items():
        print(f"{way:16}{row['bytes'] / 1e3:14.1f} kB", end="")
        print(f"{row['collectives']:14.1f}{row['loss']:16.3f}")

    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "fsdp.png"
    draw(picture, results)
    print("\npicture:", picture)
    return {"ways": results, "weights": weights, "pictures": [picture]}


if __name__ == "__main__":
    results = main()
