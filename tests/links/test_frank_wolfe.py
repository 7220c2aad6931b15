"""The oracles against brute force, the step against its formula and against convergence."""

from fractions import Fraction

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3e-3])
def test_the_answer_is_in_the_ball_in_exact_arithmetic(dtype, epsilon):
    for magnitude in (1e-25, 1.0, 1e25):
        rows = (draw(20, 30) * magnitude).to(dtype)
        if not rows.isfinite().all():
            continue
        answers = {
            1: [rc.l1_oracle(epsilon), rc.l1q_oracle(0.8, epsilon)],
            2: [rc.l2_oracle(epsilon)],
            float("inf"): [rc.linf_oracle(epsilon)],
        }
        for p, oracles in answers.items():
            for oracle in oracles:
                for row in oracle.map(rows).tolist():
                    sizes = [abs(Fraction(v)) for v in row]
                    power = 1 if p != 2 else 2
                    size = max(sizes) if p == float("inf") else sum(v**power for v in sizes)
                    bound = Fraction(epsilon) ** power
                    assert size <= bound
                    smallest = 0.9 if dtype in (torch.float64, torch.float32) else 0.7
                    assert not any(sizes) or size > bound * Fraction(smallest)


@pytest.mark.parametrize("p", sorted(ORACLES))
def test_around_a_center_the_answer_is_the_same_moved_there(p):
    g, center = draw(7, 5), draw(7, 5, seed=4)
    around = ORACLES[p].replace(center=center)
    torch.testing.assert_close(around.map(g), center + ORACLES[p].map(g), rtol=0, atol=1e-12)
    l1q = rc.l1q_oracle(0.6, 2.0)
    around = l1q.replace(center=center).map(g)
    torch.testing.assert_close(around, center + l1q.map(g), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_around_a_center_the_answer_is_in_the_ball_in_exact_arithmetic(dtype):
    g, center = draw(20, 6).to(dtype), draw(20, 6, seed=4).to(dtype)
    powers = {rc.l1_oracle: 1, rc.l2_oracle: 2, rc.linf_oracle: 0}
    for oracle, power in powers.items():
        for row, middle in zip(oracle(0.1, center).map(g).tolist(), center.tolist(), strict=True):
            sizes = [abs(Fraction(a) - Fraction(b)) for a, b in zip(row, middle, strict=True)]
            size = sum(v**power for v in sizes) if power else max(sizes)
            assert 0 < size <= Fraction(0.1) ** max(power, 1)


def test_frank_wolfe_stays_in_its_ball_however_small_the_gradient():
    """The gradient of a confident classifier is below 1e-22."""
    x = torch.zeros(2, 3, requires_grad=True)
    optim = rc.optim.L2FrankWolfe([x], epsilon=1.0)
    for _ in range(5):
        x.grad = draw(2, 3).float() * 1e-30
        optim.step()
        assert x.norm(dim=1).max() <= 1.0 + 1e-6


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
