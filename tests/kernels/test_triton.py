"""Selection in Triton: the bits of the fallback in its interpreter, and code for GPUs."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def backend():
    """These run once, not on every backend."""


def run(*command, **environment):
    """Another process: whether Triton interprets is asked when it is imported."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Triton is installed for tests on Linux and x86-64")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_in_the_interpreter():
    script = str(HERE / "in_triton.py")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", script, TRITON_INTERPRET="1")


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rai_chain.kernels.triton_rows import _select

for digits in (15, 31, 63):
    for mask in (False, True):
        for gpu in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
            x = f"*i{digits + 1}"
            kinds = {"x": x, "y": "*i8" if mask else x, "k": "*i64" if mask else "i32"}
            kinds |= {"size": "i32", "step": "i32"}
            fixed = {"BLOCK": 256, "DIGITS": digits, "INFINITY": 99, "EACH": mask, "MASK": mask}
            fixed["WIDE"] = tl.int64 if digits > 31 else tl.int32
            kinds |= dict.fromkeys(fixed, "constexpr")
            source = ASTSource(fn=_select, signature=kinds, constexprs=fixed)
            made = triton.compile(source, target=gpu, options={"enable_fp_fusion": False})
            print("cubin" in made.asm)
"""


def test_it_compiles_for_gpus(tmp_path):
    said = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert said.split() == ["True"] * 12


def test_it_is_not_imported_before_it_is_needed():
    code = (
        "import sys, torch; before = set(sys.modules); import rai_chain;"
        "rai_chain.top_q(0.5).update(torch.ones(1, 9), ());"
        "print([m for m in set(sys.modules) - before if m.split('.')[0] == 'triton'])"
    )
    assert run("-c", code).strip() == "[]"
