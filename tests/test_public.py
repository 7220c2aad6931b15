"""What is public is written down, shown, explained and with an example."""

import inspect
import math
import re
from pathlib import Path

import pytest
from public import FILE, api, names

from rai_chain.data.hyper import Range

PUBLIC = names.public()
every = pytest.mark.parametrize("name", sorted(PUBLIC))
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?")
RULES = [  # (name, argument, bound) of every number that may not be any
    (name, key, bound)
    for name, made in sorted(PUBLIC.items())
    for key, rule in getattr(getattr(made, "definition", None), "rules", {}).items()
    if isinstance(rule, Range)
    for bound in (rule.low, rule.high)
    if math.isfinite(bound)
]


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


@pytest.mark.parametrize(("name", "key", "bound"), RULES)
def test_every_number_says_its_range(name, key, bound):
    text = described(PUBLIC[name])[key]
    numbers = [float(number) for number in NUMBER.findall(text)]
    in_words = bound == 0.0 and re.search(r"positive|>= min_step_size", text)
    assert bound in numbers or in_words, f"{name} does not say that {key} has the bound {bound}"
