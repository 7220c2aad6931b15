"""States follow their parameters over ranks: ZeRO, distributed checkpoints, full and flattened.

The reference is the run of one process that was never interrupted.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers import give, identical, parameters, step, steps, tensors_in, values
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam
from two_processes import LOST, MAKERS, REFUSED, every

import rai_chain as rc
from rai_chain.optim import ChainedParamTransformingOptimizer

Chain = ChainedParamTransformingOptimizer
SCRIPT = Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each case left on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    here = {**os.environ, "PYTHONPATH": str(Path(rc.__file__).parents[1])}
    command = [sys.executable, str(SCRIPT)]
    ranks = [
        subprocess.Popen([*command, rank, str(folder)], stderr=subprocess.PIPE, text=True, env=here)
        for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()

    def result(name, rank):
        file = folder / f"{name}.{rank}"
        assert file.exists(), errors[rank]
        return torch.load(file, weights_only=True)

    return result


def check(two_processes, name):
    for rank in range(2):
        result = two_processes(name, rank)
        assert not isinstance(result, str), result
        found, expected = result
        assert identical(found, expected), f"rank {rank}"


@pytest.mark.parametrize("name", sorted(every().keys() - LOST))
def test_zero_redundancy_loads_each_parameters_own_state(two_processes, name):
    """Two parameters of one shape, one on each rank: each gets its own moments back."""
    check(two_processes, f"zero {name}")


@pytest.mark.parametrize("name", sorted(every().keys() - REFUSED))
def test_a_distributed_checkpoint_loads_each_ranks_own_shard(two_processes, name):
    """FSDP2 on two ranks: with a state inside a wrapper as well."""
    check(two_processes, f"nested {name}")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_needs_whole_tensors_is_refused_on_both_ranks(two_processes, name):
    """At once: none waits for the other."""
    for rank in range(2):
        refusal = two_processes(f"nested {name}", rank)
        assert "NotImplementedError" in refusal and "that ranks share" in refusal


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_flattened_distributed_checkpoint(two_processes, name):
    """Keys joined by dots, as trainers that reshard save them."""
    check(two_processes, f"flat {name}")


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_full_state_dict_is_accepted_by_its_own_optimizer(two_processes, name):
    """Gathered on each rank, and sharded again."""
    check(two_processes, f"full {name}")


# ------------------------------------------------------------------ one process is enough


def stack(count, size=32):
    layers = [torch.nn.Linear(size, size, bias=False) for _ in range(count)]
    return torch.nn.Sequential(*layers)


def weight(nest):
    return sum(t.numel() * t.element_size() for t in tensors_in(nest))


@pytest.mark.parametrize(
    "make",
    [
        lambda: rc.ema(0.9),
        lambda: rc.error_feedback(rc.top_q(0.5)),
        lambda: rc.accumulate(rc.trace(0.5), 2),
    ],
    ids=["ema", "error_feedback", "accumulate"],
)
def test_a_flattened_checkpoint_grows_with_the_number_of_tensors(make):
    """And not with its square: torch repeats param groups for each parameter."""
    sizes = []
    for count in (4, 16):
        net = stack(count)
        optimizer = Chain(make(), params=net.parameters(), lr=0.1)
        steps(optimizer, 1)
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        sizes.append(weight(get_optimizer_state_dict(net, optimizer, options=options)))
    assert sizes[0] > 4 * 32 * 32 * 4 - 1
    assert sizes[1] < 4.2 * sizes[0]


# torch's own Adam loses its moments where a fresh one has gradients.
FRESH = [(SGD, False), (SGD, True), (Adam, False)]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(("kind", "gradients"), FRESH)
def test_a_fresh_optimizer_loads_link_states(kind, gradients, flat, tmp_path):
    """SGD keeps no state of its own, so torch starts none where there are gradients."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def made():
        net = stack(2, 3)
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(values(*p.shape, seed=i))
        return net, Chain(rc.ema(0.9), params=net.parameters(), InnerOpt=kind, lr=0.1)

    (first, optimizer), (second, resumed) = made(), made()
    steps(optimizer, 3)
    saved = {"optimizer": get_optimizer_state_dict(first, optimizer, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    second.load_state_dict(first.state_dict())
    if gradients:
        give(parameters(resumed), [1.0] * 2)
    loaded = {"optimizer": get_optimizer_state_dict(second, resumed, options=options)}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(second, resumed, loaded["optimizer"], options=options)
    assert identical(steps(resumed, 2, start=3), steps(optimizer, 2, start=3))


def test_asking_a_fresh_optimizer_for_its_state_changes_no_step_after_it():
    """torch takes a step with zero gradients and lr = 0 to learn the keys."""
    runs = []
    for ask in (False, True):
        net = stack(2, 3)
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(values(*p.shape, seed=i))
        optimizer = Chain(rc.trace(0.5), params=net.parameters(), lr=0.1)
        if ask:
            get_optimizer_state_dict(net, optimizer)
        step(optimizer, 1.0, 1.0)
        runs.append([p.detach() for p in net.parameters()])
    assert identical(*runs)
