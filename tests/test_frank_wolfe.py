"""The oracles against brute force, the step against its formula and against convergence."""

import pytest
import torch

import rai_chain as rc

ORACLES = {
    1: rc.l1_oracle(2.0),
    2: rc.l2_oracle(2.0),
    float("inf"): rc.linf_oracle(2.0),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("p", sorted(ORACLES))
@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 2), (3, 2, 2, 2)])
def test_the_oracle_minimises_over_the_ball(p, shape):
    g = draw(*shape)
    rows = g.flatten(1)
    s = ORACLES[p].map(g).flatten(1)
    assert torch.linalg.vector_norm(s, p, dim=1).max() <= 2.0 + 1e-12
    dual = {1: float("inf"), 2: 2, float("inf"): 1}[p]
    value = -2.0 * torch.linalg.vector_norm(rows, dual, dim=1)  # Hoelder: attained on the ball
    torch.testing.assert_close((rows * s).sum(1), value, rtol=1e-12, atol=1e-12)


def test_l1q_oracle_has_the_right_support_and_norm():
    g = draw(6, 10)
    s = rc.l1q_oracle(0.7, 2.0).map(g)
    assert ((s != 0).sum(1) == 3).all()
    torch.testing.assert_close(s.abs().sum(1), torch.full((6,), 2.0, dtype=torch.float64))
    top = g.abs().topk(3, dim=1).indices
    assert torch.equal(s.gather(1, top), -2 / 3 * g.gather(1, top).sign())


def test_the_first_of_equal_magnitudes_is_the_vertex():
    assert torch.equal(
        rc.one_hot_sign().map(torch.tensor([[1.0, -3.0, 3.0]])), torch.tensor([[0.0, -1.0, 0.0]])
    )


def test_the_step_is_its_formula():
    w, s = draw(3, 4), draw(3, 4, seed=1)
    tx = rc.frank_wolfe_step(lr=2.0)
    state = tx.init(w)
    for step in range(4):
        expected = (1 - 2 / (2 + step)) * w + 2 / (2 + step) * s
        w, state = tx.step(w, s, state)
        torch.testing.assert_close(w, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("p", sorted(ORACLES))
def test_it_converges_to_the_constrained_minimum(p):
    """min |w - t|^2 over the ball, which the projection gives in closed form."""
    t = draw(2, 6, seed=3)
    project = {1: rc.l1_ball, 2: rc.l2_ball, float("inf"): rc.linf_ball}[p](2.0)
    tx = rc.chain(ORACLES[p], rc.frank_wolfe_step())
    w = torch.zeros_like(t)
    state = tx.init(w)
    for _ in range(2000):
        w, state = tx.step(w, w - t, state)
        assert torch.linalg.vector_norm(w, p, dim=1).max() <= 2.0 + 1e-9
    best = ((project.map(t) - t) ** 2).sum()
    assert ((w - t) ** 2).sum() - best < 1e-2
