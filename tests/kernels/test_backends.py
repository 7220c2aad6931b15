"""Every backend gives the same bits; the environment variable forces one."""

import hashlib
import math
import os
import subprocess
import sys

import pytest
import torch
from exact import DTYPES, hard_rows

import rai_chain.kernels
from rai_chain.kernels import fallback, native, norms, select, sets, signs


def digest(tensors):
    """A hash of the bits, every NaN alike and zeros without a sign."""
    h = hashlib.sha256()
    for x in tensors:
        x = torch.where(x.isnan(), torch.full_like(x, math.nan), x + 0.0)
        h.update(x.contiguous().view(fallback.BITS[x.dtype]).numpy().tobytes())
    return h.hexdigest()


def results(seed, threads=1):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    for dtype in DTYPES:
        for own in range(20):
            x, center, radius = hard_rows(dtype, 20 * seed + own, n=3)
            if own % 5 == 0:
                size = (100, 1024, 1025, 5000)[own // 5]
                x = torch.randn(2, size, generator=generator, dtype=torch.float64).to(dtype)
                center = None if own % 2 else x * 0.9
            if own % 7 == 0:
                x[0, 0] = (math.inf, -math.inf, math.nan)[own // 7]
            for ball in (sets.l1_ball, sets.l2_ball, sets.linf_ball):
                yield ball(x, radius, center)
            yield sets.simplex(x, radius)
            yield select.keep_largest(x, own % (x.shape[1] + 1))
            yield signs.sign(x)
            for p in (1, 2, 3.5, math.inf):
                yield norms.row_norm(x, p)
            yield norms.rescale(x, norms.row_norm(x, 2).clamp(min=1e-300), radius)


@pytest.fixture(scope="module")
def expected():
    library, native.library = native.library, None
    made = [digest(results(seed)) for seed in range(3)]
    native.library = library
    return made


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits(expected, threads):
    assert [digest(results(seed, threads)) for seed in range(3)] == expected


def test_the_backend_is_said(backend):
    assert rai_chain.kernels.backend == backend
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rai_chain.kernels.nonsense


def test_the_environment_forces_a_backend(backend):
    code = "import rai_chain.kernels as k; print(k.backend)"
    wanted = {"RAI_CHAIN_KERNELS": "off" if backend == "fallback" else backend}
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, env={**os.environ, **wanted}, capture_output=True, text=True)
    assert said.stdout.strip() == backend, said.stderr


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("RAI_CHAIN_KERNELS", "sse9")
    rule = "`RAI_CHAIN_KERNELS` must be one of off, plain, avx2, avx512  Got: sse9"
    with pytest.raises(ValueError, match=rule):
        native._load()


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError(path)))
    assert native._load() is None


def test_no_memory_is_an_error_of_python(backend):
    if backend == "fallback":
        return  # numpy raises it
    with pytest.raises(MemoryError):
        huge = torch.empty(1, 1).expand(1, 1 << 60)
        huge.contiguous = huge.resolve_neg = lambda: huge
        native._run("select", huge, option=5)


def test_the_default_device_and_dtype_do_not_matter():
    x = torch.randn(3, 40)
    functions = [
        lambda: select.keep_largest(x, 5),
        lambda: norms.row_norm(x, 2),
        lambda: sets.l1_ball(x, 1.0),
        lambda: sets.l2_ball(x, 1.0, 0.5),
        lambda: sets.linf_ball(x, 0.3),
        lambda: sets.linf_ball(x, 0.3, 0.1),
        lambda: sets.simplex(x, 1.0),
        lambda: signs.sign(x),
    ]
    expected = [f() for f in functions]
    try:
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        sets._number_inside.cache_clear()
        assert all(torch.equal(f(), e) for f, e in zip(functions, expected, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_a_destination_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size"):
        select.keep_largest(torch.ones(2, 3), 1, out=torch.ones(2, 2))
