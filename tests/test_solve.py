"""The loop that minimises and maximises: what counts, for each example, and what it costs."""

import os
import subprocess
import sys

import pytest
import torch
import torchopt
from torch.func import grad, jvp, vmap

import rai_chain as rc
from rai_chain import box, chain, random, scale, sgd
from rai_chain.solve import maximize, minimize


def waves(x):
    """Many minima for each row of (..., D)."""
    return (torch.sin(5 * x) + 0.1 * x**2).sum(-1)


def start(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def around(x0, key):
    return random.linf_ball(key, tuple(x0.shape), 3.0, x0)


def by_hand(x, tx, steps, fun=waves):
    """All points of a run and their values."""
    state, points = tx.init(x), [x]
    for _ in range(steps):
        x, state = tx.step(x, grad(lambda x: fun(x).sum())(x), state)
        points.append(x)
    return torch.stack(points), torch.stack([fun(point) for point in points])


# ------------------------------------------------------------------ what counts


def test_it_is_the_loop_that_one_writes():
    points, values = by_hand(start(4, 3), rc.adam(0.3), 12)
    found = minimize(waves, start(4, 3), rc.adam(0.3), 12, best=False)
    torch.testing.assert_close(found.x, points[-1])
    torch.testing.assert_close(found.values, values[-1])
    torch.testing.assert_close(found.history, values)


def test_the_best_point_of_each_example_counts():
    points, values = by_hand(start(8, 3), sgd(0.4), 12)
    found = minimize(waves, start(8, 3), sgd(0.4), 12)
    lowest = values.argmin(0)
    assert len(set(lowest.tolist())) > 2
    torch.testing.assert_close(found.values, values.amin(0))
    torch.testing.assert_close(found.x, points[lowest, torch.arange(8)])


def test_each_example_is_what_it_is_alone():
    together = minimize(waves, start(5, 3), sgd(0.4), 6, stop=lambda x, values: values < -1.5)
    for i in range(5):
        stop = {"stop": lambda x, values: values < -1.5}
        alone = minimize(waves, start(5, 3)[i : i + 1], sgd(0.4), 6, **stop)
        torch.testing.assert_close(alone.x[0], together.x[i])


def test_values_may_have_several_dimensions_or_none():
    x0 = start(2, 3, 4)
    found = minimize(waves, x0, sgd(0.4), 6)
    flat = minimize(waves, x0.flatten(0, 1), sgd(0.4), 6)
    assert torch.equal(found.x.flatten(0, 1), flat.x) and found.history.shape == (7, 2, 3)
    whole = minimize(lambda x: waves(x).sum(), x0, sgd(0.4), 6)
    assert whole.values.shape == () and whole.history.shape == (7,)
    assert whole.values == whole.history.min()


def test_restarts_keep_the_best_for_each_example():
    several = minimize(waves, start(6, 2), sgd(0.05), 8, restarts=4, init=around, seed=3)
    assert several.history.shape == (5 * 9, 6)
    assert torch.equal(several.values, several.history.amin(0))
    runs = several.history.unflatten(0, (5, 9)).amin(1)
    assert len(set(runs.argmin(0).tolist())) > 1  # not all in one run
    torch.testing.assert_close(waves(several.x), several.values)
    again = minimize(waves, start(6, 2), sgd(0.05), 8, restarts=4, init=around, seed=3)
    assert torch.equal(again.x, several.x)
    other = minimize(waves, start(6, 2), sgd(0.05), 8, restarts=4, init=around, seed=4)
    assert not torch.equal(other.history, several.history)


def test_without_best_the_last_points_of_the_runs_count():
    found = minimize(waves, start(6, 2), sgd(0.5), 7, best=False, restarts=2, init=around)
    last = found.history.unflatten(0, (3, 8))[:, -1]
    assert torch.equal(found.values, last.amin(0))
    assert (found.values > found.history.amin(0)).any()
    torch.testing.assert_close(waves(found.x), found.values)


def test_maximising_is_minimising_the_negative():
    up = maximize(waves, start(6, 2), rc.adam(0.3), 8, restarts=1, init=around)
    down = minimize(lambda x: -waves(x), start(6, 2), rc.adam(0.3), 8, restarts=1, init=around)
    assert torch.equal(up.x, down.x)
    assert torch.equal(up.values, -down.values) and torch.equal(up.history, -down.history)


def test_a_tree_goes_through_with_its_none():
    def fun(x):
        return ((x["a"] - 1) ** 2).sum((1, 2)) + ((x["b"][0] + 2) ** 2)

    x0 = {"a": torch.zeros(3, 2, 2), "b": (torch.zeros(3), None)}
    found = minimize(fun, x0, sgd(0.4), 30, stop=lambda x, values: values < 1e-9)
    torch.testing.assert_close(found.x["a"], torch.ones(3, 2, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.x["b"][0], torch.full((3,), -2.0), atol=1e-3, rtol=0)
    assert found.x["b"][1] is None and found.history[-1].max() < 1e-9


def test_zero_steps_look_at_the_start_alone():
    x0 = start(3, 2)
    found = minimize(waves, x0, sgd(0.4), 0)
    assert torch.equal(found.x, x0) and found.x is not x0
    assert torch.equal(found.history, waves(x0)[None])


def test_nan_is_seen_in_the_history_and_is_no_best_point():
    x0 = torch.tensor([[4.0], [-1.0], [1.0]])  # the root is NaN below 0
    found = minimize(lambda x: x.sqrt().sum(1), x0, sgd(3.0), 3)
    assert found.history[:, 1].isnan().all() and found.values[1].isnan()
    assert found.history[1:, 2].isnan().all() and found.values[2] == 1.0

    def start_from_both(x0, key):
        return torch.tensor([[-1.0], [2.0]])[int(key % 2)]

    found = minimize(lambda x: x.log().sum(), x0[0], sgd(0.0), 0, restarts=9, init=start_from_both)
    assert found.history[0].isnan() and found.values == torch.tensor(2.0).log()


# ------------------------------------------------------------------ who rests


def test_an_example_that_is_done_rests_where_it_was():
    seen = []
    found = minimize(
        lambda x: x[:, 0] ** 2,
        torch.tensor([[1.0], [8.0]]),
        sgd(0.25),  # halves
        6,
        stop=lambda x, values: values < 0.3,
        callback=lambda visit, x, values: seen.append((visit, *x[:, 0].tolist())),
    )
    expected = [(0, 1.0, 8.0), (1, 0.5, 4.0), (2, 0.5, 2.0), (3, 0.5, 1.0), (4, 0.5, 0.5)]
    assert seen == expected  # and no further
    assert found.x[:, 0].tolist() == [0.5, 0.5] and len(found.history) == 5


def test_the_point_that_stops_counts_even_where_another_has_a_better_value():
    def stop(x, values):
        return (x[:, 0] - 2.0).abs() < 0.3  # on the way up

    x0 = torch.tensor([[0.0], [5.0]])
    tx = chain(rc.sign(), scale(-0.5))
    found = maximize(lambda x: -(x[:, 0] ** 2), x0 + 1.0, chain(rc.negate(), tx), 20, stop=stop)
    assert found.x[0, 0] == 2.0 and found.values[0] == -4.0  # at the start it was -1
    for best in (True, False):
        again = minimize(
            lambda x: x[:, 0],
            x0,
            tx,
            20,
            best=best,
            stop=stop,
            restarts=3,
            init=lambda x0, key: x0 + 0.1 * random.uniform(key, (2, 1)),
        )
        assert stop(again.x, None)[1] and again.x[0, 0] < -9
        assert len(again.history) == 4 * 21  # the first example never stops


def test_when_all_rest_it_ends_and_in_a_graph_it_goes_on():
    def solve(x):
        return minimize(waves, x, sgd(0.1), 9, stop=lambda x, values: values < 100.0)

    assert len(solve(start(3, 2)).history) == 1
    found = vmap(solve)(start(3, 2))
    assert found.history.shape == (3, 10) and torch.equal(found.x, start(3, 2))


# ------------------------------------------------------------------ its homes


def options():
    return {"restarts": 1, "stop": lambda x, values: values < -2.5}


def test_under_vmap_each_lane_is_what_it_is_alone():
    def solve(x, lr, seed):
        return minimize(waves, x, sgd(lr), 6, init=around, seed=seed, **options())

    x0, lr, seeds = start(5, 3), torch.linspace(0.05, 0.4, 5), torch.arange(5)
    together = vmap(solve)(x0, lr, seeds)
    for i in range(5):
        alone = solve(x0[i], lr[i], seeds[i])
        torch.testing.assert_close(together.x[i], alone.x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.values[i], alone.values, atol=1e-5, rtol=1e-5)


def test_under_vmap_lanes_may_have_one_start_and_part_later():
    x0, lr = start(4, 3), torch.linspace(0.05, 0.4, 5)
    together = vmap(lambda lr: minimize(waves, x0, sgd(lr), 6, **options() | {"restarts": 0}))(lr)
    for i in range(5):
        alone = minimize(waves, x0, sgd(lr[i]), 6, **options() | {"restarts": 0})
        assert together.history[i].shape == alone.history.shape == (7, 4)
        torch.testing.assert_close(together.x[i], alone.x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.history[i], alone.history, atol=1e-5, rtol=1e-5)


def test_it_compiles_as_one_graph():
    def solve(x):
        return minimize(waves, x, rc.adam(0.2), 3, init=around, **options())

    torch.compiler.reset()
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(solve, fullgraph=True, backend=count)
    for a, b in zip(compiled(start(5, 3)), solve(start(5, 3)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1


def test_derivatives_go_through_it():
    x0 = torch.tensor([0.3, -0.7], dtype=torch.float64)

    def after(lr):
        return minimize(waves, x0, sgd(lr), 4, best=False).values

    lr, h = torch.tensor(0.05, dtype=torch.float64), 1e-6
    slope = (after(lr + h) - after(lr - h)) / (2 * h)
    torch.testing.assert_close(grad(after)(lr), slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        jvp(after, (lr,), (torch.ones_like(lr),))[1], slope, rtol=1e-6, atol=0
    )


def test_pipelines_of_all_kinds_work():
    found = minimize(waves, start(4, 3), rc.adam(0.3), 5)
    for tx in (torchopt.adam(0.3), rc.adam(0.3).compile(backend="eager")):
        torch.testing.assert_close(minimize(waves, start(4, 3), tx, 5).x, found.x)
    theirs = minimize(waves, start(4, 3), rc.from_torch(torch.optim.Adam, lr=0.3), 5)
    torch.testing.assert_close(theirs.x, found.x)


def test_links_get_the_values_and_the_raw_gradient():
    seen = []

    @rc.elementwise
    def look(updates, *, value, grad):
        seen.append((value.clone(), grad.clone()))
        return updates

    x0 = start(4, 3)
    maximize(waves, x0, chain(scale(-0.1), look()), 1)
    ((value, raw),) = seen
    assert torch.equal(value, -waves(x0))
    torch.testing.assert_close(raw, -(5 * torch.cos(5 * x0) + 0.2 * x0))


class Square(torch.autograd.Function):
    """Written for autograd alone: `torch.func` refuses it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


def test_eagerly_whatever_autograd_can_differentiate_will_do():
    with torch.no_grad():
        found = minimize(lambda x: Square.apply(x).sum(1), start(4, 3), sgd(0.5), 1)
    assert found.x.abs().max() < 1e-6


# ------------------------------------------------------------------ what it leaves


def test_nothing_is_written_and_nothing_stays_in_the_graph_of_autograd():
    x0 = torch.nn.Parameter(start(4, 3))
    before, weight = x0.detach().clone(), torch.ones(3, requires_grad=True)
    epsilon = torch.tensor(0.1, requires_grad=True)

    def solve(x):
        tx = chain(sgd(0.1), rc.l2_ball(epsilon, x.detach(), param_ndim=None))
        return minimize(lambda x: waves(x * weight), x, tx, 5)

    for found in (solve(x0), vmap(solve)(x0)):
        assert not any(part.requires_grad for part in found)
    assert torch.equal(x0, before) and x0.grad is None and weight.grad is None
    assert type(solve(x0).x) is torch.Tensor


PEAK = """
import re, sys, torch
from torch.func import vmap
from rai_chain import adam, chain, box
from rai_chain.solve import minimize
steps, how = int(sys.argv[1]), sys.argv[2]
weight = torch.ones(1 << 20, requires_grad=True)
def solve(x):
    tx = chain(adam(0.1), box(-9.0, 9.0))
    return minimize(lambda x: (x * weight).cos().sum(-1), x, tx, steps)
(vmap(solve) if how == "vmap" else solve)(torch.ones(2, 1 << 20))
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", ["plain", "vmap"])
def test_memory_does_not_grow_with_the_steps(how):
    def peak(steps):
        command = [sys.executable, "-c", PEAK, str(steps), how]
        # What is free is given back, so that holes in the memory of the process do not count.
        around = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
        return int(subprocess.run(command, check=True, capture_output=True, env=around).stdout)

    assert peak(24) - peak(4) < 8 * 1024  # kB: one tensor like x; a graph would keep 60


# ------------------------------------------------------------------ what is told and refused


def test_progress_shows_a_bar_of_all_steps(capsys):
    minimize(waves, start(4, 3), sgd(0.1), 5, restarts=1, init=around, progress=True)
    assert "10/10" in capsys.readouterr().err


def test_progress_without_tqdm_says_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="`progress` needs tqdm: pip install tqdm"):
        minimize(waves, start(4, 3), sgd(0.1), 5, progress=True)


BAD = {
    "fun": ({"fun": 3}, TypeError, "`fun` must be a function of x  Got: 3"),
    "x0": ({"x0": torch.ones(2).int()}, TypeError, "`x0.*` must have a floating dtype"),
    "no tensor": ({"x0": {"a": None}}, ValueError, "`x0` must have a tensor"),
    "tx": ({"tx": "sgd"}, TypeError, "`chain` must get gradient transformations"),
    "fit": ({"tx": rc.l1_ball(1.0, param_ndim=5)}, ValueError, "`param_ndim` must satisfy"),
    "steps": ({"steps": -1}, ValueError, "`steps` must satisfy 0 <= steps  Got: -1"),
    "steps, float": ({"steps": 2.0}, TypeError, "`steps` must be an int  Got: 2.0"),
    "restarts": ({"restarts": 1.5}, ValueError, "`restarts` must be a whole number  Got: 1.5"),
    "init": ({"restarts": 2}, ValueError, "`init` must be given with restarts"),
    "best": ({"best": 1}, ValueError, "`best` must be one of False, True  Got: 1"),
    "stop": ({"stop": 0.5}, TypeError, "`stop` must be a function of x, values  Got: 0.5"),
    "callback": (
        {"callback": []},
        TypeError,
        r"function of visit, x, values  Got: \[\]",
    ),
    "progress": ({"progress": "yes"}, ValueError, "`progress` must be one of"),
    "seed": ({"seed": 1.0}, TypeError, "`seed` must be an int or a 0-dim int64 tensor  Got: 1.0"),
    "init, tree": ({"init": lambda x, key: [x]}, ValueError, r"`init\(x0, key\)` must have the"),
    "init, shape": (
        {"init": lambda x, key: x[0]},
        ValueError,
        r"`init\(x0, key\).*` must have the shape of its parameter, \(4, 3\)  Got: \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_runs(case):
    given, error, message = BAD[case]
    calls = []

    def fun(x):
        calls.append(x)
        return waves(x)

    arguments = {"fun": fun, "x0": start(4, 3), "tx": sgd(0.1), "steps": 2, **given}
    for solve in (minimize, maximize):
        with pytest.raises(error, match=message):
            solve(**arguments)
    assert not calls


@pytest.mark.parametrize(
    ("fun", "error", "message"),
    [
        (lambda x: 3.0, TypeError, "`fun` must return a floating tensor  Got: 3.0"),
        (
            lambda x: x.sum().long(),
            TypeError,
            "floating tensor  Got: a tensor of .* and torch.int64",
        ),
        (lambda x: x.sum(0), ValueError, r"or one for each example.*\(4, 3\)  Got: shape \(3,\)"),
        (lambda x: torch.zeros(4), ValueError, "must return values that depend on `x`"),
    ],
)
def test_a_function_of_another_kind_is_refused_at_the_first_point(fun, error, message):
    with pytest.raises(error, match=message):
        minimize(fun, start(4, 3), sgd(0.1), 3)


@pytest.mark.parametrize("said", [True, torch.ones(4), torch.ones(3, dtype=torch.bool)])
def test_a_stop_of_another_kind_is_refused(said):
    with pytest.raises(TypeError, match=r"`stop` must return a bool tensor of the shape .* \(4,\)"):
        minimize(waves, start(4, 3), sgd(0.1), 3, stop=lambda x, values: said)


def test_constraints_hold_at_every_point():
    seen = []
    minimize(
        waves,
        torch.zeros(4, 3),
        chain(sgd(1.0), box(-0.2, 0.3)),
        5,
        callback=lambda visit, x, values: seen.append(x),
    )
    assert len(seen) == 6 and all(((x >= -0.2) & (x <= 0.3)).all() for x in seen)


def test_a_pipeline_gets_the_loss_and_the_gradient_function():
    def f(x):
        return ((x - 1.0) ** 2).sum()

    x0 = torch.tensor([2.0, -1.0], dtype=torch.float64)
    for find, sign in ((minimize, 1.0), (maximize, -1.0)):
        goal = lambda x, sign=sign: sign * f(x)  # noqa: E731
        found = find(goal, x0, rc.sam(rc.sgd(0.1), 0.2), 20, best=False)
        tx, x = rc.sam(rc.sgd(0.1), 0.2), x0
        state = tx.init(x)
        for _ in range(20):
            x, state = tx.step(x, torch.func.grad(f)(x), state, grad_fn=torch.func.grad(f))
        torch.testing.assert_close(found.x, x, rtol=1e-12, atol=1e-12)
    assert f(minimize(f, x0, rc.polyak_sgd(), 40).x) < 1e-20
