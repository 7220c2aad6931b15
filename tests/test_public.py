"""What is public is written down, shown, explained and with an example."""

import inspect
import re
from pathlib import Path

import pytest
from public import FILE, api, names

from rai_chain.data.hyper import Range

PUBLIC = names.public()
every = pytest.mark.parametrize("name", sorted(PUBLIC))
LIMITS = re.compile(r"[<>=]|\[|\(0|at least|at most|positive|any number|above|below|0 |None|like")


def described(made):
    """Argument -> what the docstring's Args says of it."""
    bases = made.__mro__[-2:0:-1] if inspect.isclass(made) else ()
    found = {name: text for base in bases for name, text in described_by(base).items()}
    return found | described_by(made)


def described_by(made):
    found, doc = {}, made.__doc__ or ""
    doc = inspect.cleandoc(doc)
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", flags=re.MULTILINE)
    for entry in re.split(r"\n(?=    \S)", section.group(1) if section else ""):
        head, colon, text = entry.strip().partition(":")
        if colon:
            found |= dict.fromkeys((own.strip("` *") for own in head.split(",")), text)
    return found


def test_no_public_name_changes_unannounced():
    """Where this is meant: `make api`, and a line in the changelog."""
    assert api().splitlines() == FILE.read_text().splitlines()


def test_every_public_name_is_on_one_page():
    shown = [name for members in names.pages().values() for name in members]
    assert sorted(shown) == sorted(PUBLIC)


def coded(text):
    """What stands in backticks, without arguments."""
    return {code.split("(")[0] for code in re.findall("`(.*?)`", text.replace("\n", " "))}


def test_every_link_is_in_a_line():
    """Where a link came: docs/links.md or docs/wrappers.md."""
    links, wrappers = ((Path(names.__file__).parent / f"{p}.md") for p in ("links", "wrappers"))
    rows = [line for line in links.read_text().splitlines() if line.startswith("|")]
    listed = coded(" ".join(row.split(" | ")[0] for row in rows))
    also = {"wrappers": coded(wrappers.read_text())}
    for page in (*names.SCOPES.values(), "steps", "constraints", "wrappers"):
        own = {name.rsplit(".", 1)[1] for name in names.pages()[page]}
        missing = own - listed - also.get(page, set())
        assert not missing, f"no line has {sorted(missing)}"


@every
def test_a_public_name_has_an_example(name):
    assert ">>>" in (inspect.getdoc(PUBLIC[name]) or "")


@every
def test_every_argument_is_described(name):
    made = PUBLIC[name]
    arguments = {p.name for p in names.arguments(made) if p.kind is not p.VAR_KEYWORD}
    missing = arguments - set(described(made)) - {"self"}
    assert not missing, f"{name} does not say what {sorted(missing)} are"


@every
def test_every_number_says_its_range(name):
    definition = getattr(PUBLIC[name], "definition", None)
    texts = described(PUBLIC[name])
    for key, rule in (definition.rules if definition else {}).items():
        if isinstance(rule, Range) and (rule.low, rule.high) != (-float("inf"), float("inf")):
            assert LIMITS.search(texts[key]), f"{name} does not say the range of {key}"
