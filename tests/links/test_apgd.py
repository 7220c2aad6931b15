"""The adaptive step against its paper's rule, a loop over steps for one example at a time."""

import io
import math
import pickle

import pytest
import torch
from torch.func import vmap

import rai_chain as rc
from rai_chain import apgd, chain
from rai_chain.solve import maximize, minimize


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def hills(x, slopes=None):
    """Many local maxima: (N, D) -> (N,)."""
    slopes = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype) if slopes is None else slopes
    return (torch.sin(5 * x) * slopes + 0.3 * torch.cos(3 * x.roll(1, -1)) * x).sum(-1)


DIRECTIONS = {
    "Linf": (lambda g: g.sign(), rc.sign),
    "L2": (lambda g: g / g.norm(), lambda: rc.normalize(2)),
    "L1": (lambda g: g / g.abs().sum(), lambda: rc.normalize(1)),
}
BALLS = {"Linf": rc.linf_ball, "L2": rc.l2_ball, "L1": rc.l1_ball}


def paper(f, x0, steps, direction, project, size, momentum=0.25, rho=0.75):
    """Algorithm 1 for one example, written from the paper: the point with the largest value."""
    parts = [0.0, 0.22]
    while parts[-1] < 1:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    checks = sorted({math.ceil(round(p * steps, 6)) for p in parts if p < 1})

    def look(x):
        at = x.clone().requires_grad_()
        value = f(at)
        return value.item(), torch.autograd.grad(value, at)[0]

    x, previous, values, reduced = x0, x0, [], False
    best, best_value, best_gradient = None, -math.inf, None
    halvings = 0
    for k in range(steps):
        value, gradient = look(x)
        if value > best_value:
            best, best_value, best_gradient = x, value, gradient
        values.append(value)
        if k == 0:
            best_before = value
        if k in checks[1:]:
            last = checks[checks.index(k) - 1]
            up = sum(values[i + 1] > values[i] for i in range(last, k))
            first_condition = up < rho * (k - last)
            second_condition = not reduced and best_value == best_before
            reduced = first_condition or second_condition
            if reduced:
                size, halvings = size / 2, halvings + 1
                x, gradient, values[-1] = best, best_gradient, best_value
            best_before = best_value
        z = project(x + size * direction(gradient))
        new = z if k == 0 else project(x + (1 - momentum) * (z - x) + momentum * (x - previous))
        x, previous = new, x
    value, _ = look(x)
    return (x if value > best_value else best), max(value, best_value), halvings


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
@pytest.mark.parametrize("norm", DIRECTIONS)
def test_each_example_goes_as_the_paper_says(norm, steps):
    direction, link = DIRECTIONS[norm]
    x0, epsilon = draw(6, 5).clamp(-2, 2), {"Linf": 0.5, "L2": 1.0, "L1": 1.5}[norm]
    inner = chain(link(), rc.scale(-2 * epsilon), BALLS[norm](epsilon, x0), rc.box(-2.0, 2.0))
    found = maximize(hills, x0, apgd(inner, steps), steps)
    halvings = []
    for i in range(6):
        ball = chain(BALLS[norm](epsilon, x0[i], param_ndim=None)) if norm != "Linf" else None

        def project(x, i=i, ball=ball):
            if ball is None:
                return x.clamp(x0[i] - epsilon, x0[i] + epsilon).clamp(-2, 2)
            zero = torch.zeros_like(x)
            return ball.step(x, zero, ball.init(x))[0].clamp(-2, 2)

        x, value, count = paper(hills, x0[i], steps, direction, project, 2 * epsilon)
        halvings.append(count)
        torch.testing.assert_close(found.x[i], x, rtol=0, atol=1e-7)  # flat there: 1e-8 squared
        torch.testing.assert_close(found.values[i].item(), value, rtol=0, atol=1e-9)
    assert steps != 30 or len(set(halvings)) > 1  # each example has steps of its own


def test_it_finds_better_points_than_steps_of_one_size():
    x0 = draw(200, 5)
    inner = chain(rc.sign(), rc.linf_ball(1.0, x0))
    adaptive = maximize(hills, x0, apgd(chain(rc.scale(-2.0), inner), 40), 40).values
    for size in (2.0, 0.5, 0.1, 0.02):
        fixed = maximize(hills, x0, chain(rc.scale(-size), inner), 40).values
        assert adaptive.mean() > fixed.mean()


def test_one_value_for_all_rows_makes_all_rows_alike():
    x0 = {"a": draw(4, 3), "b": [draw(2, seed=1), None], "c": draw(1, seed=2)[0]}
    tx = apgd(chain(rc.sign(), rc.scale(-0.5)), 20)

    def fun(x):
        return hills(x["a"]).sum() + hills(x["b"][0]) + x["c"].cos()

    found = minimize(fun, x0, tx, 20)
    assert found.values < found.history[0] - 3 and found.x["b"][1] is None
    state, x = tx.init(x0), x0
    for i in range(12):
        x, state = tx.step(x, x, state, value=0.5**i if i < 3 else 1.0)
    assert all((f == 0.25).all() for f in torch.utils._pytree.tree_leaves(state["factor"]))


def test_a_gradient_that_is_none_changes_nothing_that_is_kept():
    tx = apgd(chain(rc.scale(-0.5), rc.box(-1.0, 1.0)), 20)
    x = {"a": draw(4, 3).clamp(-1, 1), "b": draw(2).clamp(-1, 1)}
    state = tx.init(x)
    new, after = tx.step(x, {"a": x["a"], "b": None}, state, value=1.0)
    assert torch.equal(new["b"], x["b"]) and not torch.equal(new["a"], x["a"])
    for key in ("best", "least", "last", "previous"):
        assert torch.equal(after[key]["b"].nan_to_num(9), state[key]["b"].nan_to_num(9))


def test_nan_is_no_best_value():
    tx = apgd(chain(rc.sign(), rc.scale(-4.0)), 20)
    x0 = torch.tensor([[2.0], [-3.0]])  # the root is NaN below 0
    found = minimize(lambda x: x.sqrt().sum(1), x0, tx, 20)
    assert found.values[0] < 2.0**0.5 and found.values[1].isnan() and found.x.isfinite().all()


TX = apgd(chain(rc.normalize(2), rc.scale(-1.0), rc.l2_ball(1.5), rc.box(-1.0, 1.0)), 9)


def run(tx, x, steps=9):
    state = tx.init(x)
    for _ in range(steps):
        value, gradient = hills(x), torch.func.grad(lambda x: hills(x).sum())(x)
        x, state = tx.step(x, gradient, state, value=value)
    return x, state


def same(a, b):
    leaves = (torch.utils._pytree.tree_leaves(tree) for tree in (a, b))
    return all(torch.equal(x.nan_to_num(9), y.nan_to_num(9)) for x, y in zip(*leaves, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_input_is_written_and_dtypes_stay(dtype):
    x = draw(4, 3, dtype=dtype)
    before = x.clone()
    state = TX.init(x)
    copies = torch.utils._pytree.tree_map(torch.clone, state)
    new, after = TX.step(x, x, state, value=hills(x))
    assert new.dtype == dtype and torch.equal(x, before) and same(state, copies)
    kept = torch.utils._pytree.tree_map(torch.clone, after)
    TX.step(new, new, after, value=hills(new))
    assert same(after, kept)
    new.zero_()
    assert same(after, kept)


def test_under_vmap_each_lane_is_what_it_is_alone():
    x = draw(3, 4, 5)
    together = vmap(lambda x: run(TX, x)[0])(x)
    for i in range(3):
        torch.testing.assert_close(together[i], run(TX, x[i])[0])
    rows = vmap(lambda x: run(apgd(chain(rc.sign(), rc.scale(-1.0)), 9), x)[0])(x[0])
    expected = run(apgd(chain(rc.sign(), rc.scale(-1.0)), 9), x[0])[0]
    torch.testing.assert_close(rows, expected)  # a value each, or one row a lane


def test_it_compiles_as_one_graph():
    torch.compiler.reset()
    x = draw(4, 3)
    compiled = torch.compile(TX.step, fullgraph=True, backend="eager")
    state = TX.init(x)
    for _ in range(4):
        expected = TX.step(x, x, state, value=hills(x))
        x, state = compiled(x, x, state, value=hills(x))
        assert same((x, state), expected)


def test_an_optimizer_does_the_same_with_the_loss_of_its_closure():
    tx = apgd(chain(rc.sign(), rc.scale(-1.0), rc.box(-2.0, 2.0)), 20)
    x = draw(3).requires_grad_()
    optim = tx.optimizer([x])

    def closure():
        optim.zero_grad()
        loss = hills(x)
        loss.backward()
        return loss

    for _ in range(20):
        optim.step(closure)
    pure, _ = run(tx, draw(3), 20)
    assert torch.equal(x.detach(), pure)


def test_the_state_resumes_and_the_pipeline_pickles():
    x, state = run(TX, draw(4, 3), 5)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = pickle.loads(pickle.dumps(TX))
    assert repr(again) == repr(TX) and TX.hyperparams["rho"] == 0.75
    args = x, x, state
    assert same(TX.step(*args, value=hills(x)), again.step(x, x, loaded, value=hills(x)))
    with pytest.raises(ValueError, match="must have the shape that `init` saw"):
        TX.step(x[:2], x[:2], state, value=hills(x[:2]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: apgd(rc.sign(), 0), ValueError, "`steps` must satisfy 1 <= steps  Got: 0"),
        (lambda: apgd(rc.sign(), 2.0), TypeError, "`steps` must be an int  Got: 2.0"),
        (lambda: apgd(rc.sign(), 2, rho=2.0), ValueError, "`rho` must satisfy"),
        (lambda: apgd(rc.sign(), 2, momentum=-1.0), ValueError, "`momentum` must satisfy"),
        (
            lambda: apgd(chain(rc.sign(), rc.add_updates()), 2),
            ValueError,
            "`inner` must have no link that steps",
        ),
        (
            lambda: TX.step(draw(4, 3), draw(4, 3), TX.init(draw(4, 3))),
            ValueError,
            "`value` is needed by apgd",
        ),
        (
            lambda: TX.step(draw(4, 3), draw(4, 3), TX.init(draw(4, 3)), value=draw(3)),
            ValueError,
            r"`value` must be one number, or one for each row of a leaf of shape \(4, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
