"""Writes docs/clients.md, the table of what each client does with each chain, of a whole run."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from job import CHAINS

torch.set_num_threads(1)
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
PACKAGES = (
    "torch",
    "lightning",
    "accelerate",
    "transformers",
    "skorch",
    "opacus",
    "torchopt",
    "optuna",
    "timm",
    "pytorch_optimizer",
    "schedulefree",
    "torchao",
    "bitsandbytes",
)
HEAD = """# Clients

Written by `make test-clients`: digits of scikit-learn, a network of two layers, two or three
epochs, in each client and by hand, with the links called one by one and no optimizer of this
library. **=** says that the parameters have the same bits, in one run and in one that was saved in
the middle and went on in new objects. (With BaseFinetuning, whose groups come one after another,
the loop by hand has the optimizer.) Data parallel, ZeRO and distributed checkpoints are in
`tests/distributed`, which `make test` runs; torch's own optimizers, in every configuration of the
database that torch tests itself with, in `tests/clients/test_torch.py`.

Versions: {versions}.
"""


def pytest_configure(config):
    config.table = {}


@pytest.fixture
def outcome(pytestconfig):
    """Notes what a client did with a chain, once all about it held."""
    return lambda client, chain, what: pytestconfig.table.setdefault(client, {}).update(
        {chain: what}
    )


def pytest_sessionfinish(session, exitstatus):
    table = session.config.table
    if exitstatus != 0 or not table or any(len(row) < len(CHAINS) for row in table.values()):
        return
    import test_same_bits

    if not test_same_bits.CLIENTS.keys() <= table.keys():
        return
    notes: dict[str, int] = {}
    lines = [f"| client | {' | '.join(CHAINS)} |", "|---" * (len(CHAINS) + 1) + "|"]
    for client, row in table.items():
        cells = []
        for chain in CHAINS:
            what = row[chain]
            mark = (
                "="
                if what == "equal bits"
                else f"refused [{notes.setdefault(what, len(notes) + 1)}]"
            )
            cells.append(mark)
        lines.append(f"| {client} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    foot = "".join(f"\n[{n}] {what}.\n" for what, n in notes.items())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD.format(versions=versions) + "\n" + "\n".join(lines) + "\n" + foot)
