"""Pipelines on DTensors equal those on whole tensors: every case of shards.py, on every rank.

The reference is the run of one process. More ranks, and more random shapes and placements, by
`make test-distributed`.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import rai_chain as rc

SCRIPT, ROOT = Path(__file__).with_name("shards.py"), str(Path(rc.__file__).parents[1])
LONG = os.environ.get("RAI_CHAIN_TESTS") == "long"
WORLDS = (2, 1, 4, 8) if LONG else (2, 1)
CASES = (
    "laws of what is exact",
    "laws of sums",
    "every link",
    "homes",
    "drawn alike",
    "refusals",
    "seeded apart",
    "traffic",
    "cost",
    "hook",
    "replicas",
    "fsdp",
    "checkpoint",
    "resumed",
)
RUNS = [(name, world) for world in WORLDS for name in CASES if name != "checkpoint" or world == 2]
RUNS = [run for run in RUNS if run[1] > 1 or run[0] == "resumed"]
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each case left on each rank of each world; a world is started once."""
    folder, started = tmp_path_factory.mktemp("shards"), set()
    here = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}

    def start(world):
        started.add(world)
        command = [sys.executable, str(SCRIPT)]
        rest = str(world), str(folder), "long" if LONG else "short"
        processes = [
            subprocess.Popen([*command, str(rank), *rest], env=here) for rank in range(world)
        ]
        try:
            for process in processes:
                process.wait(timeout=1800 if LONG else 300)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def result(name, world, rank):
        for needed in (2, world):  # two leave the checkpoints
            if needed not in started:
                start(needed)
        file = folder / f"{name} on {world}.{rank}"
        assert file.exists(), "a case before it failed"
        return torch.load(file, weights_only=True)

    return result


@pytest.mark.parametrize(("name", "world"), RUNS)
def test_what_ranks_share_equals_one_process(ranks, world, name):
    for rank in range(world):
        result = ranks(name, world, rank)
        assert result == [], f"rank {rank}: {result}"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_that_is_left_alone_ends_with_an_error(end, tmp_path):
    """Of torch, after the timeout at the latest; 0 goes on alone."""
    script, here = SCRIPT.with_name("left_alone.py"), {**os.environ, "PYTHONPATH": ROOT}
    with contextlib.ExitStack() as stack:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(tmp_path), str(int(end))],
                stderr=subprocess.PIPE,
                text=True,
                env=here,
            )
            for rank in range(2)
        ]
        for process in ranks:
            stack.callback(process.communicate)
            stack.callback(process.kill)
        _, error = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1 and "gloo" in error
    assert (tmp_path / "steps.0").read_text() == (tmp_path / "steps.1").read_text() == "3"


def test_importing_the_package_loads_neither_dtensor_nor_sympy():
    code = "import sys, rai_chain; print({'torch.distributed.tensor', 'sympy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
