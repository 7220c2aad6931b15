"""What costs the time: exact selection, norms and nearest points of rows.

Native code behind each where it was built (native.cpp), and beside it a short fallback with the
same bits. `backend` says what runs; the environment variable RAI_CHAIN_KERNELS forces one of off,
plain, avx2 and avx512.
"""

from . import native


def __getattr__(name: str) -> str:
    if name == "backend":
        return native.backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
