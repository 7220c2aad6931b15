"""optax's own tests of its transforms, schedules and projections; `make test-optax` runs more."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the jax that optax needs is for Python 3.11 and newer", allow_module_level=True)


def test_optaxs_own_tests_fail_where_the_list_says_so_and_nowhere_else() -> None:
    suite = str(Path(__file__).with_name("optax_suite.py"))
    parts = ["transforms", "schedules", "projections"]
    run = subprocess.run([sys.executable, suite, *parts], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
