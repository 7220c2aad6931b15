"""Every public name of the libraries that people come from is in a table, and so is its answer."""

import builtins
import fnmatch
import re
import sys
from pathlib import Path

import pytest
import torch

import rai_chain

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs")]
import peers  # noqa: E402

every = pytest.mark.parametrize("page", peers.PEERS)
MODULES = (rai_chain, rai_chain.optim, rai_chain.random, rai_chain.perturbations, rai_chain.solve)


def peer(page):
    if page == "from_optax" and sys.version_info < (3, 11):
        pytest.skip("the jax that optax needs is for Python 3.11 and newer")
    return peers.names(page)


@every
def test_every_name_of_a_peer_is_in_a_table_or_here(page):
    told = [*peers.rows(page), *peers.same(page)]
    missing = [
        name for name in peer(page) if not any(fnmatch.fnmatchcase(name, row) for row in told)
    ]
    assert told and not missing, f"docs/{page}.md does not say what stands for {sorted(missing)}"


@every
def test_no_table_has_a_name_that_the_peer_has_not(page):
    found = peer(page)
    stale = [r for r in peers.rows(page) if not any(fnmatch.fnmatchcase(n, r) for n in found)]
    assert found and not stale


@pytest.mark.parametrize("page", [file.stem for file in (ROOT / "docs" / "same").glob("*.txt")])
def test_the_names_that_are_the_same_are_listed(page):
    """Where a name came or went: `make api`."""
    listed = (ROOT / "docs" / "same" / f"{page}.txt").read_text()
    assert peer(page) and listed == peers.listed(page)


@every
def test_what_is_named_here_is_here(page):
    """Each call in the last column of a table is one of ours, of torch's or a peer's."""
    ours = {name for module in MODULES for name in module.__all__} | set(dir(builtins))
    for row, text in peers.rows(page).items():
        for code in re.findall("`(.*?)`", text):
            called = re.findall(r"(?<![\w.])([a-z_]\w*)\(", code)
            plain = [code] if code.isidentifier() and page == "from_torch" else []
            missing = {*called, *plain} - ours - {"f", "a", "b", "InnerOpt", "lr"}
            assert not missing, f"{row}: {missing}"
            for dotted in re.findall(r"torch\.[\w.]+", code):
                made = torch
                for part in dotted.rstrip(".").split(".")[1:]:
                    made = getattr(made, part)


@every
def test_a_name_that_both_have_is_listed_or_told_of(page):
    """Where a name came that a row has an answer for: take it out of the row, and `make api`."""
    for row, text in peers.rows(page).items():
        own = row.split(".")[-1]
        elsewhere = row.startswith(("tree.", "losses.", "lr_scheduler."))
        assert own not in rai_chain.__all__ or own in text or elsewhere, f"{row} is here"


def test_the_differences_from_optax_are_read_from_the_tests():
    found = peers.differences()
    assert "rprop" in found and all(isinstance(why, str) for why in found.values())


def test_every_link_of_the_readme_leads_to_a_file():
    text = (ROOT / "README.md").read_text()
    places = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', text)
    assert places and all((ROOT / "".join(place)).is_file() for place in places)


SCHEDULERS = {
    "StepLR": (dict(step_size=3, gamma=0.5), lambda rc: rc.exponential_decay(0.1, 3, 0.5, 0, True)),
    "MultiStepLR": (
        dict(milestones=[3, 8], gamma=0.5),
        lambda rc: rc.piecewise_constant_schedule(0.1, {3: 0.5, 8: 0.5}),
    ),
    "ConstantLR": (
        dict(factor=0.5, total_iters=4),
        lambda rc: rc.piecewise_constant_schedule(0.1 * 0.5, {4: 1 / 0.5}),
    ),
    "LinearLR": (
        dict(start_factor=0.5, end_factor=0.8, total_iters=5),
        lambda rc: rc.linear_schedule(0.5 * 0.1, 0.8 * 0.1, 5),
    ),
    "ExponentialLR": (dict(gamma=0.5), lambda rc: rc.exponential_decay(0.1, 1, 0.5)),
    "PolynomialLR": (
        dict(total_iters=10, power=2.0),
        lambda rc: rc.polynomial_schedule(0.1, 0.0, 2.0, 10),
    ),
    "CosineAnnealingLR": (
        dict(T_max=12, eta_min=0.02),
        lambda rc: rc.cosine_decay_schedule(0.1, 12, 0.02 / 0.1),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedules_of_the_table_are_torchs(name):
    options, make = SCHEDULERS[name]
    assert f"lr_scheduler.{name}" in peers.rows("from_torch")
    optim = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler, schedule = getattr(torch.optim.lr_scheduler, name)(optim, **options), make(rai_chain)
    for step in range(12):
        assert optim.param_groups[0]["lr"] == pytest.approx(float(schedule(step)), abs=1e-12), step
        optim.step()
        scheduler.step()


def test_a_decay_of_almost_one_is_an_equal_average():
    """As `get_swa_avg_fn`, which counts from the first point."""
    tx = rai_chain.chain(rai_chain.sgd(0.5), rai_chain.params_ema(1 - 1e-9))
    x = torch.tensor([4.0])
    state, seen = tx.init(x), []
    for _ in range(5):
        x, state = tx.step(x, x, state)
        seen.append(x)
    torch.testing.assert_close(rai_chain.averaged_params(state), torch.stack(seen).mean(0))
