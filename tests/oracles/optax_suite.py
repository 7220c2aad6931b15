"""Runs optax's own tests, which its wheel ships, with our functions under optax's names.

    python tests/oracles/optax_suite.py [transforms schedules ...]

A test that reaches nothing of ours counts for nothing. A failure must be in the list of
`optax_differences.py`, and what is in the list must fail. RAI_CHAIN_TESTS=long: with the
optimizations of 10,000 steps.
"""

import fnmatch
import os
import sys
import warnings
from pathlib import Path

import pytest
from optax_differences import REASONS
from optax_shim import HITS, install, jax, optax

OPTAX = Path(optax.__file__).parent
LONG = "AliasTest.test_optimization("
HOURS = "ContribTest.test_optimizers("  # 156 times 30,000 steps, most of what stays optax's
# The files whose tests reach what is here too; in folders all of them.
FILES = [
    "transforms",
    "schedules",
    "projections",
    "_src/alias_test.py",
    "_src/base_test.py",
    "_src/combine_test.py",
    "_src/float64_test.py",
    "_src/transform_test.py",
    "_src/update_test.py",
    "contrib/_common_test.py",
    "contrib/_complex_valued_test.py",
    "contrib/_privacy_test.py",
    "contrib/_schedule_free_test.py",
]


class Record:
    """What each test reached, and whether it failed."""

    def __init__(self):
        self.names, self.reached, self.why, self.failed, self.passed = {}, {}, {}, set(), set()

    def pytest_collection_modifyitems(self, items):
        for item in items:
            told = getattr(item.cls, "_test_params_reprs", {}).get(item.name)
            name = item.name.rstrip("0123456789") + told if told else item.name
            self.names[item.nodeid] = f"{item.cls.__name__}.{name}"
        left = (HOURS,) if os.environ.get("RAI_CHAIN_TESTS") == "long" else (LONG, HOURS)
        items[:] = [i for i in items if not self.names[i.nodeid].startswith(left)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        HITS.clear()
        try:
            return (yield)
        finally:
            self.reached[item.nodeid] = set(HITS)
            if len(self.reached) % 100 == 0:
                jax.clear_caches()

    def pytest_runtest_makereport(self, item, call):
        if call.excinfo:
            told = " ".join(str(call.excinfo.value).split())
            self.why.setdefault(item.nodeid, f"{call.excinfo.typename}: {told[:300]}")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.skipped:
            (self.failed if report.failed else self.passed).add(report.nodeid)


def main(*given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that optax deprecates
        install()
    record = Record()
    files = [str(OPTAX / name) for name in given or FILES]
    options = ["-q", "--tb=no", "--no-header", "-r", "N", "-p", "no:cacheprovider"]
    places = ["-c", os.devnull, "--rootdir", str(OPTAX), "--import-mode=importlib"]
    told = pytest.main([*files, *options, *places], plugins=[record])
    assert told in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), told
    ran = {test for test in record.failed | record.passed if record.reached[test]}
    failed = record.failed & ran
    patterns = {pattern: set() for own in REASONS.values() for pattern in own}
    for pattern, tests in patterns.items():
        tests |= {test for test in ran if fnmatch.fnmatchcase(record.names[test], pattern)}
    listed = set().union(*patterns.values())
    wrong = [f"{test} fails: {record.why[test]}" for test in sorted(failed - listed)]
    wrong += [f"{test} passes, but is in the list" for test in sorted(listed - failed)]
    if not given:
        wrong += [f"no test is {pattern}" for pattern, tests in patterns.items() if not tests]
    names = set().union(*(record.reached[test] for test in ran))
    print(*wrong, sep="\n")
    print(f"of {len(ran)} tests that reach {len(names)} names {len(ran - failed)} pass")
    print(f"{len(failed)} fail; {len(wrong)} against the list")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
