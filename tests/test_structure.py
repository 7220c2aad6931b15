"""The house: imports one way, files that one can read."""

import ast
import pathlib

import pytest

import rai_chain

ROOT = pathlib.Path(rai_chain.__file__).parent
FLOORS = ["data", "kernels", "engine", "core", "links", "optim", ""]  # "": the package itself
MAY = {"kernels": {"data"}, "engine": {"data", "kernels"}}  # the others: any floor below
FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module(path) for path in FILES}


def imported(path):
    """The modules of the package that a file imports, at its top or anywhere in it."""
    package = module(path) if path.name == "__init__.py" else module(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            start = (*base, *(node.module.split(".") if node.module else ()))
            names = [start, *((*start, alias.name) for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rai_chain"):
            names = [tuple(node.module.split(".")[1:])]
        elif isinstance(node, ast.Import):
            names = [tuple(a.name.split(".")[1:]) for a in node.names if "rai_chain" in a.name]
        yield from (name for name in names if name in MODULES and name not in ((), package))


def floor(name):
    return name[0] if name and name[0] in FLOORS else ""


def test_the_test_sees_imports():
    assert ("core", "link") in set(imported(ROOT / "core" / "chain.py"))
    assert ("optim", "fast") in set(imported(ROOT / "optim" / "adapter.py"))
    assert floor(("optim", "fast")) == "optim" and floor(("schedules",)) == ""


@every_file
def test_imports_run_one_way(path):
    """data < kernels, engine < core < links < optim, in functions too."""
    own = floor(module(path))
    below = MAY.get(own, set(FLOORS[: FLOORS.index(own)])) | {own}
    assert {floor(name) for name in imported(path)} <= below


def test_no_import_runs_in_a_circle():
    arrows = {module(path): set(imported(path)) for path in FILES}
    done, around = set(), []

    def visit(name):
        assert name not in around, f"a circle: {[*around, name]}"
        if name not in done:
            around.append(name)
            for other in arrows[name]:
                visit(other)
            done.add(around.pop())

    for name in arrows:
        visit(name)


@every_file
def test_a_file_can_be_read(path):
    """One idea a file."""
    assert len(path.read_text().splitlines()) <= 420
