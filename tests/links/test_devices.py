"""Nothing waits for a device: what tests/links/on_a_device.py says, in a process of its own."""

import subprocess
import sys
from pathlib import Path


def test_on_a_device():
    """torch is told of a device once and for all, which other tests are not to see."""
    script = Path(__file__).with_name("on_a_device.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
