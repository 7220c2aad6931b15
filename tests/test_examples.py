"""The examples run at reduced size, and what they claim holds."""

import os
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

EXAMPLES = {path.stem: path for path in Path(__file__).parents[1].glob("examples/*.py")}
FINISHED = {}  # example -> what its run left


@pytest.fixture
def run(tmp_path_factory, monkeypatch, capsys):
    """Run an example as a user would, once: its `results`, what it printed, its folder."""

    def run_once(name):
        if name not in FINISHED:
            folder = tmp_path_factory.mktemp(name)
            monkeypatch.chdir(folder)
            monkeypatch.setenv("MPLBACKEND", "Agg")
            path = [str(EXAMPLES[name].parents[1]), os.environ.get("PYTHONPATH", "")]
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
            monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", "pictures"])
            threads = torch.get_num_threads()
            with torch.random.fork_rng():
                results = runpy.run_path(str(EXAMPLES[name]), run_name="__main__")["results"]
            torch.set_num_threads(threads)
            FINISHED[name] = results, capsys.readouterr().out, folder
        return FINISHED[name]

    return run_once


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_runs_and_writes_nothing_but_pictures(name, run):
    _, printed, folder = run(name)
    assert printed
    assert {path.name for path in folder.iterdir()} <= {"pictures"}
    for path in folder.glob("pictures/*"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_homes_agree(run):
    differences, _, _ = run("quickstart")
    assert differences["optimizer"].abs().max() == 0
    assert differences["TorchOpt"].abs().max() < 1e-6


def test_attacks_are_listed_beside_those_of_other_libraries(run):
    results, printed, _ = run("attacks")
    assert results["clean"] > 0.9  # over 0.97 in the full run, which checks it
    rows = {(row.norm, row.attack, row.library): row for row in results["rows"]}
    assert {"rai_chain", "rai-toolbox", "foolbox"} <= {library for _, _, library in rows}
    assert sum(row.difference is not None for row in rows.values()) >= 2
    for (norm, attack, library), row in rows.items():
        assert row.right < results["clean"] and f"{row.right:.1%}" in printed
        assert row.difference is None or row.difference < 1e-5
        if attack in ("SLIDE", "APGD") and norm == 1:
            assert row.right < rows[1, "PGD", "rai_chain"].right
            assert rows[norm, attack, "rai_chain"].right <= row.right, library


def test_the_larger_the_radius_the_fewer_images_are_left(run):
    results, _, _ = run("attacks")
    for norm, attacks in results["curves"].items():
        assert {"PGD", "APGD"} < set(attacks)
        for right in attacks.values():
            assert right[0] > 0.9 and right[-1] < right[0] - 0.2
            assert all(after <= before + 0.02 for before, after in pairwise(right))
            assert sum(attacks["APGD"]) <= sum(right) + 0.02, norm


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("attacks", 1),
        ("ensemble", 1),
        ("hypergradient", 1),
        ("compressed_training", 1),
        ("fsdp", 1),
    ],
)
def test_the_pictures_are_drawn(name, count, run):
    results, printed, folder = run(name)
    assert len(results["pictures"]) == count
    for picture in results["pictures"]:
        assert not picture.is_absolute() and str(picture) in printed
        assert (folder / picture).stat().st_size > 10_000


def test_the_learned_hyperparameters_lower_the_loss(run):
    results, _, _ = run("meta_learning")
    assert results["losses"][-1] < 0.6 * results["losses"][0]
    assert results["after"] < 0.6 * results["before"]


def test_an_ensemble_trains_the_same_networks_faster(run):
    results, printed, _ = run("ensemble")
    assert results["table"].numel() == 32 and results["table"].max() > 0.8
    assert results["apart"] < 0.02
    assert results["factors"]["same function"] > 1
    assert all(f"factor of {factor:.1f}" in printed for factor in results["factors"].values())


def test_hypergradients_lower_the_loss(run):
    results, _, _ = run("hypergradient")
    losses = results["losses"]
    assert all(after < before for before, after in pairwise(losses))
    assert results["after"] < 0.95 * results["before"]
    assert all(len(values) == len(losses) for values in results["history"].values())


def test_error_feedback_makes_up_for_compression(run):
    results, _, _ = run("compressed_training")
    dense, fed_back, dropped = results["table"].values()
    assert dense["loss"] < fed_back["loss"] < 0.7 * dropped["loss"]
    for name, own in results["records"].items():
        assert (own["sent"] <= own["gradient"]).all() or "feedback" in name
        assert abs(own["sparsity"].mean() - 0.99) < 1e-3 or name == "dense"


def test_what_processes_send_each_other_is_counted(run):
    results, printed, _ = run("fsdp")
    ways, gradient = results["ways"], 4 * results["weights"]
    dense, hook, sharded, chosen = (
        ways[name] for name in ("DDP", "DDP, top 1%", "FSDP2", "FSDP2, top 1%")
    )
    assert (dense["collectives"], dense["bytes"]) == (1, gradient)
    assert hook["bytes"] < 0.025 * gradient and hook["collectives"] == 2
    assert hook["bytes"] < ways["DDP, PowerSGD"]["bytes"] < 0.2 * gradient
    # Of each weight the other half is fetched, for many twice, and half of each gradient is sent.
    assert gradient < sharded["bytes"] < 1.5 * gradient
    assert 0 < chosen["bytes"] - sharded["bytes"] < 0.4 * gradient
    assert 3 <= chosen["collectives"] - sharded["collectives"] < 5
    assert sharded["loss"] == pytest.approx(dense["loss"], abs=1e-3)
    for row in ways.values():
        assert row["loss"] < 0.8 * row["curve"][0][-1] and f"{row['loss']:.3f}" in printed
