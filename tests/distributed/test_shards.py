"""Pipelines on DTensors equal those on whole tensors: every case of shards.py, on every rank.

The reference is the run of one process. More ranks, and more random shapes and placements, by
`make test-distributed`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import rai_chain as rc

SCRIPT = Path(__file__).with_name("shards.py")
LONG = os.environ.get("RAI_CHAIN_TESTS") == "long"
WORLDS = (2, 1, 4, 8) if LONG else (2, 1)
CASES = (
    "laws of what is exact",
    "laws of sums",
    "homes",
    "drawn alike",
    "refusals",
    "seeded apart",
    "traffic",
    "hook",
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
    here = {**os.environ, "PYTHONPATH": str(Path(rc.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

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


def test_importing_the_package_loads_neither_dtensor_nor_sympy():
    code = "import sys, rai_chain; print({'torch.distributed.tensor', 'sympy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
