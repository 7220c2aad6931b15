"""Run the suite on the oldest or the newest torch, torchopt and numpy that are allowed.

    python tests/versions.py oldest [torch==2.13.0 ...] [-- pytest arguments]

The versions are those of the registry that pip asks, within `dependencies` of pyproject.toml and
the requirements given. Each run has an environment of its own, `.venv/versions/<which>`. Where
torch's builds for a CPU lie elsewhere, tell pip: PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS.
"""

import re
import subprocess
import sys
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def allowed(text):
    """name -> what pyproject.toml allows of it."""
    found = re.search(r"^dependencies = \[(.*?)\]", text, re.M | re.S)
    every = map(Requirement, re.findall(r'"(.*?)"', found[1]))
    return {requirement.name: requirement.specifier for requirement in every}


def peers(text):
    """What the Makefile installs beside the tests without its dependencies."""
    return re.search(r"^PEERS := (.*)$", text, re.M)[1].split()


def chosen(which, versions, specifier):
    """The oldest or the newest of the versions that are allowed."""
    pick = {"oldest": min, "newest": max}[which]
    return pick(specifier.filter(versions), key=Version)


def known(name):
    """The versions that the registry has, for this Python."""
    command = [sys.executable, "-m", "pip", "index", "versions", name]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.search(r"Available versions: (.*)", told)[1].split(", ")


def main(which, *given):
    given, _, rest = " ".join(given).partition("-- ")
    specifiers = allowed((ROOT / "pyproject.toml").read_text())
    for requirement in map(Requirement, given.split()):
        specifiers[requirement.name] &= requirement.specifier
    pins = [f"{n}=={chosen(which, known(n), s)}" for n, s in specifiers.items()]
    print(which, *pins, flush=True)
    home = ROOT / ".venv" / "versions" / which
    venv.create(home, with_pip=True, clear=True)
    python = str(home / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *pins], check=True)  # torch first: what follows must not replace it
    subprocess.run([*pip, *pins, "-e", ".[test,bench]"], cwd=ROOT, check=True)
    subprocess.run([*pip, "--no-deps", *peers((ROOT / "Makefile").read_text())], check=True)
    tests = [python, "-m", "pytest", "-q", *rest.split()]
    return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
