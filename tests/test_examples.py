"""The examples run at reduced size, and what they claim holds."""

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


def test_slide_is_the_stronger_attack(run):
    results, printed, _ = run("sparse_attack")
    dense, sparse = results["table"]["L1-PGD"], results["table"]["SLIDE"]
    assert all(s < d < results["clean"] for s, d in zip(sparse, dense, strict=True))
    assert results["clean"] > 0.9  # over 0.97 in the full run, which checks it
    assert all(f"{value:.1%}" in printed for value in [results["clean"], *dense, *sparse])


def test_the_attack_is_the_same_in_both_homes(run):
    results, _, _ = run("sparse_attack")
    for same_gradients, whole_attack in results["differences"].values():
        assert same_gradients == 0
        assert whole_attack < 0.25  # one step


@pytest.mark.parametrize(
    ("name", "count"),
    [("sparse_attack", 2), ("ensemble", 1), ("hypergradient", 1), ("compressed_training", 1)],
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
