"""The benchmarks measure what they say. No time is asserted."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scale
from benchmarks.__main__ import main, run
from benchmarks.attacks import CLASSES, EPSILON, attack_builders, class_builders, vmap_builders
from benchmarks.candidates import (
    BATCHED,
    CLIP,
    COMPILED,
    FLOOR,
    FUSED,
    HAND,
    OPTIMIZER,
    OURS,
    PLAIN,
    RAI,
    RAI_FUSED,
    TORCHOPT,
    clip_builders,
    pure_builders,
    step_builders,
    top_q_builders,
    tried,
)
from benchmarks.memory import measure_apart, measure_here
from benchmarks.picture import draw
from benchmarks.report import Figure, Result, machine, number, table, write_json
from benchmarks.scaling import scaling_works
from benchmarks.tensors import RESNET50, THOUSAND, elements, normal
from benchmarks.timing import (
    Candidate,
    Effort,
    NotAvailableError,
    Samples,
    Spread,
    measure,
    on_cpu,
    ratio,
    spread,
)
from benchmarks.works import Work, all_works

pytestmark = [
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # rai-toolbox
    pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning"),  # foolbox
]
ONCE = Effort(seconds=0.0, least=2, most=2, sample=0.0)
WORKS = [*all_works(), *scaling_works()]


class FakeClock:
    """A clock that each call moves on by what it costs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def candidate(self, name: str, *costs: float, restores: bool = False) -> Candidate:
        left = list(costs)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        restore = partial(self.log.append, f"restore {name}")
        return Candidate(call, restore if restores else None)

    def __call__(self, run: object, number: int) -> float:
        assert callable(run)
        start = self.now
        for _ in range(number):
            run()
        return (self.now - start) / number


# ------------------------------------------------------------------ timing


def test_every_candidate_is_timed_once_in_every_round() -> None:
    clock = FakeClock()
    candidates = {name: clock.candidate(name, 1.0) for name in "abc"}
    samples = measure(candidates, Effort(seconds=100.0, least=3, most=20), clock)
    rounds = [clock.log[i : i + 3] for i in range(len(clock.log) - 60, len(clock.log), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 2  # in more orders than one
    assert samples == {name: [1.0] * 20 for name in "abc"}


def test_the_first_calls_are_not_counted() -> None:
    clock = FakeClock()
    samples = measure({"a": clock.candidate("a", 9.0, 1.0)}, Effort(3.0, 2, 9), clock)
    assert samples == {"a": [1.0] * 3}


def test_a_slow_candidate_sits_out_some_rounds_evenly() -> None:
    clock = FakeClock()
    candidates = {"fast": clock.candidate("fast", 1.0), "slow": clock.candidate("slow", 4.0)}
    samples = measure(candidates, Effort(seconds=8.0, least=1, most=99), clock)
    assert samples["slow"] == [None, None, None, 4.0, None, None, None, 4.0]
    assert samples["fast"] == [1.0] * 8
    assert ratio(samples, "slow", "fast") == Spread(4.0, 4.0, 4.0, 2)


def test_what_can_be_repeated_is_and_what_cannot_is_restored_each_time() -> None:
    clock = FakeClock()
    candidates = {
        "short": clock.candidate("short", 0.1),
        "restored": clock.candidate("restored", 0.1, restores=True),
    }
    measure(candidates, Effort(seconds=0.0, least=2, most=2, sample=0.5), clock)
    assert clock.log.count("short") == 2 + 2 * 5
    restored = [name for name in clock.log if name.endswith("restored")]
    assert restored == ["restore restored", "restored"] * 4


def test_medians_and_quartiles_are_of_the_ratios_round_by_round() -> None:
    samples: Samples = {"a": [2.0, 40.0, 6.0, None, 5.0], "b": [1.0, 10.0, 2.0, 1.0, 1.0]}
    assert ratio(samples, "a", "b") == Spread(2.75, 3.5, 4.25, 4)  # of 2, 4, 3 and 5
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_the_clock_counts_calls() -> None:
    calls: list[int] = []
    assert on_cpu(lambda: calls.append(1), 4) > 0
    assert len(calls) == 4


# ------------------------------------------------------------------ works


def test_resnet50_has_its_parameters() -> None:
    assert len(RESNET50) == 161
    assert elements(RESNET50) == 25_557_032
    assert len(THOUSAND) == 1000


def test_top_q_sees_the_same_gradient_each_time() -> None:
    candidate = top_q_builders([(4, 50)], q=0.5)[OURS]()
    (master,) = normal([(4, 50)])
    seen: list[Tensor] = []
    for _ in range(2):
        assert candidate.prepare is not None
        candidate.prepare()
        grad = candidate.run.__self__.param_groups[0]["params"][0].grad  # type: ignore[attr-defined]
        assert torch.equal(grad, master)
        candidate.run()
        seen.append(grad.clone())
    assert torch.equal(*seen) and int((seen[0] != 0).sum()) == 100


@pytest.mark.parametrize("name", [FUSED, RAI, RAI_FUSED, TORCHOPT])
def test_all_steps_do_the_same_work(name: str) -> None:
    after = []
    for each in (OURS, name):
        (param,), (grad,) = normal([(3, 5)]), normal([(3, 5)], seed=1)
        param.grad = torch.empty_like(grad)
        candidate = step_builders([param.requires_grad_()], inner="SGD with momentum")[each]()
        for _ in range(3):
            param.grad.copy_(grad)
            candidate.run()
        after.append(param.detach())
    assert torch.allclose(after[0], after[1], rtol=0, atol=1e-7)
    assert not torch.equal(after[0], *normal([(3, 5)]))


@pytest.mark.parametrize("norm", EPSILON)
def test_an_attack_step_is_the_same_by_hand_and_in_every_home(norm: str) -> None:
    builders = attack_builders([(5, 3, 8, 8)], norm=norm)
    found = {}
    for name in (HAND, OURS, OPTIMIZER):
        candidate = builders[name]()
        for _ in range(2):
            if candidate.prepare is not None:
                candidate.prepare()
            found[name] = candidate.run()
    hand, pure, held = found.values()
    assert isinstance(hand, Tensor) and isinstance(pure, Tensor) and isinstance(held, Tensor)
    assert torch.equal(pure, held)
    assert torch.allclose(pure, hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_steps_as_the_one_of_the_peer(name: str) -> None:
    builders = class_builders([(3, 2, 4, 4)], name=name)
    ours, theirs = (builders[each]().run() for each in (OURS, RAI))
    assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(ours, normal([(3, 2, 4, 4)])[0].flatten(1))


def test_the_other_candidates_give_the_same_tensors() -> None:
    vmapped = vmap_builders([(4, 1, 8, 8)])
    assert torch.equal(*(vmapped[name]().run() for name in (OURS, BATCHED)))  # type: ignore[arg-type]
    pure = pure_builders([(3,), (2, 2)], links=6)
    found = [torch.cat([x.flatten() for x in pure[n]().run().values()]) for n in (OURS, TORCHOPT)]  # type: ignore[attr-defined]
    assert torch.allclose(*found, rtol=0, atol=1e-6)
    clip = clip_builders([(3,), (2, 2)])
    assert clip[CLIP]().run().item() > 1.0  # type: ignore[attr-defined]
    new = torch.cat([x.flatten() for x in clip[OURS]().run()[0]])  # type: ignore[index]
    assert new.norm().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("work", WORKS, ids=lambda w: f"{w.name} {w.case}".strip())
def test_every_row_runs(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    result = run(work.shrunk(), ONCE, memory=False)
    assert len(result.figures) == len(work.goals)
    assert set(result.missing) <= {COMPILED}
    for goal, figure in zip(work.goals, result.figures, strict=True):
        assert (figure.value is None) == bool({goal.of, goal.over} & result.missing.keys())
    assert result.exact in (None, True)
    assert table([result]).count("\n") == 1 + len(work.goals)


def test_a_quick_run_leaves_slow_peers_out() -> None:
    work = next(w for w in WORKS if w.full_only)
    result = run(replace(work.shrunk(), full_only=frozenset({OURS})), ONCE, quick=True)
    assert result.missing == {OURS: "only in a full run"}
    assert "only in a full run" in table([result])


def test_what_cannot_compile_is_not_available() -> None:
    def fails() -> None:
        raise RuntimeError("no compiler")

    with pytest.raises(NotAvailableError, match="RuntimeError"):
        tried(Candidate(fails))


# ------------------------------------------------------------------ memory


def test_memory_is_measured_apart() -> None:
    work = next(w for w in WORKS if w.memory and "with momentum" in w.name)
    peak = measure_apart(work, PLAIN)
    assert peak.growth > 300_000  # its momentum
    assert measure_here(work.shrunk(), PLAIN).fresh >= 0


# ------------------------------------------------------------------ the report


def test_reached_compares_the_median_with_the_bound() -> None:
    value = Spread(1.0, 2.0, 3.0, 5)
    assert Figure("F", value, 2.0).reached is True
    assert Figure("F", value, 1.9).reached is False
    assert Figure("R", value, 2.1, at_least=True).reached is False
    assert Figure("R", value, 2.0, at_least=True).reached is True
    assert Figure("R", None, 2.0).reached is None
    assert Figure("F", value).reached is None


def test_the_table_puts_the_cases_of_a_row_side_by_side() -> None:
    results = [
        Result("w", "q = 0.1", figures=[Figure("F", Spread(4.0, 5.0, 6.0, 9), 8.0)], exact=True),
        Result("w", "q = 0.5", figures=[Figure("F", Spread(9.0, 9.0, 9.0, 9), 8.0)], exact=True),
    ]
    expected = "| w; q = 0.1 / 0.5 | F | ≤ 8 | 5.00 / 9.00, exact | ±20% | not reached |"
    assert table(results).splitlines()[-1] == expected
    results[1].exact = False
    assert table(results).endswith("| not reached: not exact for q = 0.5 |")
    for result in results:  # a bound for one of the cases
        result.figures = [Figure("R", Spread(9.0, 9.0, 9.0, 9), at_least=True)]
    results[1].figures = [Figure("R", Spread(9.0, 9.0, 9.0, 9), 8.0, at_least=True)]
    assert "| R | ≥ - / 8 | 9.00 / 9.00 | ±0% | reached |" in table(results)
    assert [number(x) for x in (1234.5, 12.345, 1.2345)] == ["1234", "12.3", "1.23"]


def test_json_and_pictures_are_written(tmp_path: Path) -> None:
    sample = Spread(1.0, 2.0, 3.0, 5)
    names = {w.name: w for w in WORKS}.values()
    results = [
        Result(
            w.name,
            w.case,
            seconds={OURS: sample},
            floors={OURS: sample, FLOOR: sample},
            megabytes={OURS: 1.0} if w.memory else {},
            figures=[Figure("F", sample, 1.0), Figure("R", None, 1.0)],
        )
        for w in names
    ]
    about = {**machine(), "quick": True}
    write_json(tmp_path / "results.json", about, results)
    read = json.loads((tmp_path / "results.json").read_text())
    assert {"machine", "processor", "date", "versions", "numpy_simd", "threads"} <= set(read)
    assert [w["work"] for w in read["works"]] == [w.name for w in names]
    assert [f["reached"] for f in read["works"][0]["figures"]] == [False, None]
    paths = draw(results, about, tmp_path)
    assert [p.name for p in paths] == ["results.png", "results_more.png", "scaling.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__.all_works", lambda: [w.shrunk() for w in WORKS])
    monkeypatch.setattr("benchmarks.__main__.QUICK", ONCE)
    threads = torch.get_num_threads()
    main(["--quick", "--only", r"SGD: one of 10$", "--out", str(tmp_path / "out")])
    torch.set_num_threads(threads)
    assert (
        "| clamp, scale, bias, SGD: one of 10 | × torch optimizer | ≤ 1.4 |"
        in capsys.readouterr().out
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "results.json",
        "results.png",
        "results_more.png",
    ]


# ------------------------------------------------------------------ what ranks send each other


def test_the_tables_of_what_travels_are_current(tmp_path: Path) -> None:
    """The engine is asked again; `tests/distributed` sees that it says what real ranks send."""
    scale.main(["--quick", "--pictures", str(tmp_path), "--tables", str(tmp_path)])
    for name in ("links.txt", "networks.txt"):
        assert (tmp_path / name).read_text() == (scale.DOCS / name).read_text()
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_sent_together_is_as_much_in_less_time() -> None:
    network = scale.Network("", 64, 300, 1e7)
    one, many = (scale.cost(scale.TOP, network, together=x) for x in (True, False))
    assert many.collectives == 300 * one.collectives and many.bytes == one.bytes
    latency = scale.seconds(0, 64)
    apart = (many.collectives - one.collectives) * latency
    assert many.seconds - one.seconds == pytest.approx(apart)
    assert scale.seconds(25e9, 64) - latency == pytest.approx(2.0)


def test_a_selection_sends_a_share_of_the_shard_and_no_more_than_three_histograms() -> None:
    for here in (1000, 100_000, 300_000):
        sent = scale.messages(scale.TOP, scale.Shards((here,)), 64)
        assert 0 < sum(sent) <= min(2.0 * 4 * here, 3 * 17_000)
    assert sum(scale.messages(scale.TOP, scale.Shards((500, 200), 1, -1), 8)) <= 4 * 500 * 200
