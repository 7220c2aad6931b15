"""Every test of the kernels runs on the fallback and on each level that this machine has."""

import pytest

from rai_chain.kernels import native


def backends():
    names = ["fallback"]
    if native.library is not None:
        best = native.library.set_level(len(native._LEVELS))
        names += native._LEVELS[: best + 1]
    return names


@pytest.fixture(autouse=True, params=backends())
def backend(request, monkeypatch):
    if request.param == "fallback":
        monkeypatch.setattr(native, "library", None)
    else:
        native.library.set_level(native._LEVELS.index(request.param))
    assert native.backend() == request.param
    yield request.param
    if native.library is not None:
        native.library.set_level(len(native._LEVELS))


@pytest.fixture(autouse=True)
def at_one_thread(one_thread):
    """Threads have tests of their own."""
