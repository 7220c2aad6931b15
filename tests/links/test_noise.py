"""Noise: its moments, and what it is a function of."""

import pytest
import torch

import rai_chain as rc


def test_its_variance_is_the_one_asked_for() -> None:
    g, n = torch.zeros(200_000), 200_000
    for tx, variance in (
        (rc.add_noise(0.25, gamma=1.0), lambda t: 0.25 / (1 + t)),
        (rc.add_noise(std=0.3), lambda t: 0.09),
    ):
        state = tx.init(g)
        for t in range(3):
            noise, state = tx.update(g, state)
            assert abs(noise.mean()) < 4 * (variance(t) / n) ** 0.5
            assert abs(noise.var() / variance(t) - 1) < 4 * (2 / n) ** 0.5
            fourth = (noise**4).mean() / variance(t) ** 2
            assert abs(fourth - 3) < 4 * (96 / n) ** 0.5  # normal, then


def test_seed_step_and_leaf_draw_their_own() -> None:
    g = {"a": torch.zeros(50), "b": torch.zeros(50)}
    first, state = rc.add_noise(std=1.0).update(g, rc.add_noise(std=1.0).init(g))
    second, _ = rc.add_noise(std=1.0).update(g, state)
    other, _ = rc.add_noise(std=1.0, seed=1).update(g, rc.add_noise(std=1.0, seed=1).init(g))
    draws = [first["a"], first["b"], second["a"], second["b"], other["a"], other["b"]]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(6)
    assert correlations.abs().max() < 0.5


def test_one_of_both_sizes_is_given() -> None:
    for kwargs in ({}, {"eta": 0.1, "std": 0.1}):
        with pytest.raises(ValueError, match="`eta` or `std` must be given, and not both"):
            rc.add_noise(**kwargs)
    tx = rc.add_noise(0.1)
    with pytest.raises(ValueError, match="`eta` or `std` must be given, and not both"):
        tx.update(torch.ones(2), tx.init(torch.ones(2)), hyperparams={"std": 0.1})
