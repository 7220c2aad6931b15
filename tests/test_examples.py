"""The examples run at reduced size, and what they claim holds."""

import runpy
import sys
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


def test_the_attack_is_drawn(run):
    results, printed, folder = run("sparse_attack")
    assert len(results["pictures"]) == 2
    for picture in results["pictures"]:
        assert not picture.is_absolute() and str(picture) in printed
        assert (folder / picture).stat().st_size > 10_000


def test_the_learned_hyperparameters_lower_the_loss(run):
    results, _, _ = run("meta_learning")
    assert results["losses"][-1] < 0.6 * results["losses"][0]
    assert results["after"] < 0.6 * results["before"]
