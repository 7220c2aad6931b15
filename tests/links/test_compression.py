"""Compressed gradients: how many elements stay, which values, and that the unbiased ones are."""

from typing import Any

import pytest
import torch
from torch.func import vmap

import rai_chain as rc


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def update(tx: Any, g: torch.Tensor) -> torch.Tensor:
    out, _ = tx.update(g, tx.init(g))
    assert isinstance(out, torch.Tensor)
    return out


@pytest.mark.parametrize("k", [0, 1, 3, 7, 100])
def test_top_k_is_top_q_of_as_many(k: int) -> None:
    g = draw(5, 7)
    g[0, :3] = 1.0  # equal magnitudes
    expected = rc.top_q(1 - min(k, 7) / 7).map(g)
    assert torch.equal(rc.top_k(k).map(g), expected)
    assert torch.equal(rc.top_k(torch.tensor(k)).map(g), expected)
    assert torch.equal(
        rc.top_k(lambda step: torch.tensor(float(k))).update(g, rc.top_k(lambda step: k).init(g))[
            0
        ],
        expected,
    )


def test_top_k_of_rows_of_their_own_and_under_vmap() -> None:
    g, k = draw(4, 6), torch.tensor([0, 2, 6, 9])
    assert (rc.top_k(k).map(g) != 0).sum(1).tolist() == [0, 2, 6, 6]
    many = vmap(lambda g, k: rc.top_k(k, param_ndim=None).map(g))(g, k)
    assert torch.equal(many, rc.top_k(k).map(g))


def test_top_k_never_keeps_nothing_of_a_short_row() -> None:
    tx = rc.error_feedback(rc.top_k(1))
    g = draw(3, 32)
    out, _ = tx.update(g, tx.init(g))
    assert (out != 0).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("k", [0, 1, 3, 7, 100])
def test_random_k_keeps_k_of_each_row(k: int) -> None:
    g = draw(50, 7)
    for tx in (rc.random_k(k), rc.random_k(torch.full((50,), k))):
        out = update(tx, g)
        kept = out != 0
        assert (kept.sum(1) == min(k, 7)).all()
        torch.testing.assert_close(out[kept], 7 / max(1, min(k, 7)) * g[kept])


UNBIASED = {
    "random_k": lambda seed: rc.random_k(2, seed=seed),
    "qsgd, 1": lambda seed: rc.qsgd(1, seed=seed),
    "qsgd, 4": lambda seed: rc.qsgd(4, seed=seed),
    "terngrad": lambda seed: rc.terngrad(seed=seed),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_mean_over_seeds_is_the_gradient(name: str) -> None:
    g, n = draw(3, 5).double(), 4000

    def one(seed: torch.Tensor) -> torch.Tensor:
        tx = UNBIASED[name](seed)
        return tx.update(g, tx.init(g))[0]

    outs = vmap(one)(torch.arange(n))
    error = (outs.mean(0) - g).abs()
    assert (error <= 4 * outs.std(0) / n**0.5 + 1e-7 * g.abs()).all()
    assert (outs.std(0) > 0).any()


@pytest.mark.parametrize("name", UNBIASED)
def test_each_seed_and_step_draws_anew_and_the_same_again(name: str) -> None:
    g = draw(8, 40)
    tx = UNBIASED[name](3)
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(g, state)
    assert torch.equal(first, tx.update(g, tx.init(g))[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, update(UNBIASED[name](4), g))


def test_values_are_few() -> None:
    g = draw(6, 50)
    levels = update(rc.qsgd(4), g) / g.norm(dim=1, keepdim=True) * 4
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    tern = update(rc.terngrad(), g) / g.abs().amax(1, keepdim=True)
    assert set(tern.unique().tolist()) == {-1.0, 0.0, 1.0}
    signs = update(rc.ef_sign(), g) / g.abs().mean(1, keepdim=True)
    torch.testing.assert_close(signs, g.sign())


def test_zero_rows_stay_zero() -> None:
    zero = torch.zeros(2, 3)
    for tx in (rc.qsgd(3), rc.terngrad(), rc.ef_sign(), rc.random_k(2), rc.top_k(2)):
        assert torch.equal(update(tx, zero), zero)


def test_threshold_keeps_what_reaches_it() -> None:
    g = torch.tensor([0.5, -0.5, 0.49, -0.0, torch.nan, torch.inf])
    kept = update(rc.threshold(0.5), g)
    assert torch.equal(
        kept.nan_to_num(7.0), torch.tensor([0.5, -0.5, 0, 0, 7, torch.inf]).nan_to_num()
    )


@pytest.mark.parametrize(
    "inner", [rc.top_k(2), rc.ef_sign(), rc.threshold(0.5), rc.terngrad()], ids=lambda x: x.name
)
def test_error_feedback_hands_everything_on(inner: Any) -> None:
    """What was sent and what is owed is what came in, after any number of steps."""
    tx, total, sent = rc.error_feedback(inner), torch.zeros(3, 8), torch.zeros(3, 8)
    state = tx.init(total)
    for seed in range(30):
        g = draw(3, 8, seed=seed)
        out, state = tx.update(g, state)
        total, sent = total + g, sent + out
    torch.testing.assert_close(sent + state["error"], total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "inner",
    [
        rc.chain(rc.ef_sign(), rc.scale(0.1)),
        rc.masked(rc.scale(0.1), [True]),
        rc.partition({"a": rc.top_k(1), "b": rc.scale(0.1)}, ["a"]),
    ],
    ids=["chain", "masked", "partition"],
)
def test_error_feedback_warns_of_what_is_no_compressor(inner: Any) -> None:
    with pytest.warns(UserWarning, match=r"`inner` should .* `scale` .* `error_feedback` .*Got: "):
        rc.error_feedback(inner)


def test_a_scale_inside_error_feedback_comes_back() -> None:
    """Which the warning says: the rate 0.1 is soon none, as what it takes off is owed."""
    with pytest.warns(UserWarning):
        inside = rc.error_feedback(rc.scale(0.1))
    g = torch.ones(4)
    state = inside.init(g)
    for _ in range(99):
        out, state = inside.update(g, state)
    torch.testing.assert_close(out, g, rtol=1e-3, atol=0)


def test_a_small_leaf_moves_under_error_feedback_with_at_least_one() -> None:
    g = draw(1, 32)
    for at_least, kept in ((0, 0), (1, 1), (3, 3), (99, 32)):
        tx = rc.error_feedback(rc.top_q(0.99, at_least=at_least, param_ndim=None))
        state = tx.init(g)
        for _ in range(3):
            out, state = tx.update(g, state)
            assert int((out != 0).sum()) == kept


def test_at_least_for_each_row_and_beside_a_q_for_each() -> None:
    g, least = draw(4, 10), torch.tensor([0, 1, 2, 20])
    for q, counts in ((1.0, [0, 1, 2, 10]), (torch.tensor([0.5, 1.0, 0.1, 0.9]), [5, 1, 9, 10])):
        out = update(rc.top_q(q, at_least=least), g)
        assert (out != 0).sum(1).tolist() == counts


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rc.top_k(-1), "`k` must satisfy 0 <= k  Got: -1"),
        (lambda: rc.top_k(1.5), "`k` must be a whole number  Got: 1.5"),
        (lambda: rc.random_k(0.5), "`k` must be a whole number  Got: 0.5"),
        (lambda: rc.qsgd(0), "`levels` must satisfy 1 <= levels  Got: 0"),
        (lambda: rc.threshold(-1.0), "`threshold` must satisfy 0.0 <= threshold  Got: -1.0"),
        (lambda: rc.clip(-1.0), "`max_delta` must satisfy 0.0 <= max_delta  Got: -1.0"),
        (lambda: rc.soft_threshold(-1.0), "`threshold` must satisfy 0.0 <= threshold  Got: -1.0"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
