"""Writes the API pages: signature, docstring, where a link is valid, what it does to a gradient."""

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import names
import pictures
from sphinx.ext.napoleon import Config, GoogleDocstring

import rai_chain

HERE = Path(__file__).parent
CONFIG = Config(napoleon_use_param=True, napoleon_use_rtype=False, napoleon_use_ivar=True)
# What a law, passed by a link, says about it.
TESTS = ("tests/links/test_laws.py", "tests/optim/test_asked.py")
LAWS = {
    "test_vmap_equals_loop": "``vmap``",
    "test_derivative": "``grad``",
    "test_compiled_equals_eager": "``torch.compile(fullgraph=True)``",
    "test_optimizer_equals_pure": "``torch.optim``",
    "test_the_optimizer_does_what_the_pure_step_does": "``torch.optim``",
    "test_inplace_equals_pure": "in place",
    "test_any_dtype": "float16 and bfloat16",
}


def laws() -> dict[str, set[str]]:
    """Link -> the laws that the tests hold it to, asked of the tests themselves."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *TESTS]
    ran = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    found: dict[str, set[str]] = {}
    for law, case in re.findall(r"::(\w+)\[(.*)\]$", ran.stdout, flags=re.MULTILINE):
        link = re.sub(r"^(torch\.\w+|True|False|\w+)-", "", re.sub(r", .*", "", case))
        found.setdefault(link, set()).add(law)
    if not found:
        raise RuntimeError(f"the tests of the links were not found\n{ran.stdout}{ran.stderr}")
    return found


def valid(name: str, made: Any, held: dict[str, set[str]]) -> str:
    """The line that says where a link is valid, or nothing."""
    own = name.rsplit(".", 1)[1]
    if own in held:
        places = dict.fromkeys(words for law, words in LAWS.items() if law in held[own])
        line = f"Tested: {', '.join(places)}."
        tensors = pictures.laws().tensorable(own) if own in pictures.drawn() else ()
        if tensors:
            line += f" A tensor, with a value for each example: {', '.join(map(as_code, tensors))}."
        return line
    if names.kind(name, made) == "optimizers":
        parts = [link.name for link in made().links]
        return f"Made of {', '.join(as_role(part) for part in parts)}; valid where they are."
    return ""


def as_code(text: str) -> str:
    return f"``{text}``"


def as_role(link: str) -> str:
    return f":py:func:`~rai_chain.{link}`" if link in rai_chain.__all__ else as_code(link)


def document(made: Any) -> str:
    text = str(GoogleDocstring(inspect.getdoc(made) or "", CONFIG))
    return re.sub(r":param \*+", ":param ", text).rstrip()


def methods(made: type) -> list[str]:
    """The public methods that have a text of their own."""
    shown = []
    for name, method in vars(made).items():
        if name.startswith("_") or not inspect.isfunction(method) or not method.__doc__:
            continue
        arguments = re.sub(r"^\(self(, )?", "(", names.signature(method))
        shown.append(entry("method", f"{name}{arguments}", document(method)))
    return shown


def entry(what: str, head: str, text: str) -> str:
    return f".. py:{what}:: {head}\n\n{textwrap.indent(text, '   ')}\n"


def page(title: str, members: dict[str, Any], held: dict[str, set[str]]) -> str:
    parts = [f"{title}\n{'=' * len(title)}\n", names.about(title), ""]
    for name, made in members.items():
        text = [document(made), "", valid(name, made, held), ""]
        if name.rsplit(".", 1)[1] in pictures.drawn():
            own = name.rsplit(".", 1)[1]
            text += [f".. image:: pictures/{own}.png", f"   :alt: What {own} does", ""]
        schedule = names.kind(name, made) == "schedules"
        is_class = inspect.isclass(made) and not schedule
        if is_class:
            text += methods(made)
        parts.append(
            entry(
                "class" if is_class else "function", name + names.signature(made), "\n".join(text)
            )
        )
    return "\n".join(parts)


def write() -> None:
    """Write all pages and their pictures."""
    out = HERE / "api"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pictures.draw(out / "pictures")
    held = laws()
    found = {title: members for title, members in names.pages().items() if members}
    for title, members in found.items():
        (out / f"{title}.rst").write_text(page(title, members, held))
    rows = "\n".join(f"   {title}" for title in found)
    contents = (
        f"API\n===\n\nEvery public name, by kind.\n\n.. toctree::\n   :maxdepth: 2\n\n{rows}\n"
    )
    (out / "index.rst").write_text(contents)
