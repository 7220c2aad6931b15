"""The public names of other libraries, and the rows that tell what stands here in their place."""

import ast
import fnmatch
import importlib
import re
import warnings
from pathlib import Path
from types import ModuleType

import rai_chain

HERE = Path(__file__).parent
# Page -> module of the peer -> prefix of its names in the tables.
PEERS = {
    "from_optax": {
        "optax": "",
        "optax.contrib": "contrib.",
        "optax.projections": "projections.",
        "optax.transforms": "transforms.",
        "optax.schedules": "schedules.",
        "optax.losses": "losses.",
        "optax.second_order": "second_order.",
        "optax.perturbations": "perturbations.",
        "optax.assignment": "assignment.",
        "optax.tree": "tree.",
    },
    "from_torch": {
        "torch.optim": "",
        "torch.optim.lr_scheduler": "lr_scheduler.",
        "torch.optim.swa_utils": "swa_utils.",
    },
    "from_torchopt": {
        "torchopt": "",
        "torchopt.transform": "transform.",
        "torchopt.combine": "combine.",
        "torchopt.schedule": "schedule.",
        "torchopt.hook": "hook.",
    },
    "from_rai_toolbox": {
        "rai_toolbox": "",
        "rai_toolbox.optim": "optim.",
        "rai_toolbox.perturbations": "perturbations.",
    },
}
HOMES = {"from_rai_toolbox": {"optim.": "optim", "perturbations.": "perturbations"}}


def names(page: str) -> dict[str, str]:
    """Name in the tables -> its own; what the peer's top module has too stands there once."""
    found: dict[str, str] = {}
    top: set[str] = set()
    for place, prefix in PEERS[page].items():
        module = importlib.import_module(place)
        told = {*getattr(module, "__all__", ())}
        for name in sorted(told | {*dir(module)} if place.startswith("optax") else told):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that the peer deprecates
                made = getattr(module, name, None)
            if name.startswith("_") or isinstance(made, ModuleType):
                continue
            if prefix == "":
                top.add(name)
            if prefix in ("", "tree.") or name not in top:
                found[prefix + name] = name
    return found


def same(page: str) -> list[str]:
    """The names that stand here too, under the same name, and in no table."""
    told = rows(page)
    found = []
    for shown, own in names(page).items():
        prefix = shown.removesuffix(own)
        home = getattr(rai_chain, HOMES.get(page, {}).get(prefix, ""), rai_chain)
        here = own in home.__all__ and prefix not in ("tree.", "losses.")
        if here and not any(fnmatch.fnmatchcase(shown, row) for row in told):
            found.append(shown)
    return sorted(found, key=str.lower)


def rows(page: str) -> dict[str, str]:
    """Name of the peer, or a pattern -> the last column, where nothing else is in the first."""
    found = {}
    for line in (HERE / f"{page}.md").read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("|") and re.fullmatch("`[^`]*`(, `[^`]*`)*", cells[0]):
            found |= {name.split("(")[0]: cells[-1] for name in re.findall("`(.*?)`", cells[0])}
    return found


def differences() -> dict[str, str]:
    """What differs from optax on purpose, as the tests that compare with it know it."""
    tree = ast.parse((HERE.parent / "tests" / "oracles" / "test_optax.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DIFFERENCES":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise LookupError("DIFFERENCES")


def listed(page: str) -> str:
    """What the page includes: the names that are the same, in the words of the page."""
    return ",\n".join(f"`{name}`" for name in same(page)) + ".\n"


def write() -> None:
    """Write what the page of differences includes."""
    out = HERE / "api"
    out.mkdir(exist_ok=True)
    lines = [f"| {name} | {why} |" for name, why in sorted(differences().items())]
    head = "| case | what differs |\n|---|---|\n"
    (out / "differences.txt").write_text(head + "\n".join(lines) + "\n")
