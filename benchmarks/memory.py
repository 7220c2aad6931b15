"""Peak memory: each candidate alone in a fresh process, which sees numpy, torch and all else."""

import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from .timing import Candidate, NotAvailableError
from .works import Work, all_works

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes of memory.

    Attributes:
        growth: the first call's peak above what there was when tensors and optimizer were made.
        fresh: pages that a later call touches for the first time: what is reused costs none.
    """

    growth: int
    fresh: int


def _peak_bytes() -> int:
    """The largest resident set so far."""
    if _STATUS.exists():  # getrusage would count the process that this one was forked from
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return 1024 * int(found[1]) if found else 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _call(candidate: Candidate) -> None:
    if candidate.prepare is not None:
        candidate.prepare()
    candidate.run()


def _load(work: Work, name: str) -> None:
    """Load what is loaded at the first call: code, above all."""
    torch.set_num_threads(1)
    largest = max(torch.Size(shape).numel() for shape in work.shapes)
    long_rows = [(1, min(largest, 1 << 20))] * 2
    candidate = work.build([*long_rows, *work.shrunk().shapes])[name]()
    for _ in range(3):
        _call(candidate)


def measure_here(work: Work, name: str) -> Peak:
    """Measure in this process, whose peak must not have been higher before."""
    warm = threading.Thread(target=_load, args=(work, name))  # its scratch goes with it
    warm.start()
    warm.join()
    candidate = work.build(work.shapes)[name]()
    if candidate.prepare is not None:
        candidate.prepare()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what is free would hide growth
    if trim is not None:
        trim(0)
    if _RESET.exists():
        _RESET.write_text("5")
    before = _peak_bytes()
    for _ in range(2):  # an optimizer's state is made by the first
        _call(candidate)
    growth = _peak_bytes() - before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _call(candidate)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return Peak(growth, faults * resource.getpagesize())


def measure_apart(work: Work, name: str) -> Peak:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", work.name, work.case, name]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAvailableError(done.stderr.strip().rpartition("\n")[2])
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    torch.set_num_threads(1)
    name, case, candidate = sys.argv[1:]
    work = next(w for w in all_works() if (w.name, w.case) == (name, case))
    peak = measure_here(work, candidate)
    print(json.dumps(vars(peak)))


if __name__ == "__main__":
    main()
