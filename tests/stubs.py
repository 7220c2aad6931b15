"""Writes the stubs that tell editors and type checkers the true signatures: `make stubs`.

A factory is made by a decorator, and a class of `rai_chain.optim` of its links: neither shows in
the sources what it takes. Everything else is named where it is defined.
"""

import ast
import inspect
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent / "rai_chain"
sys.path.insert(0, str(ROOT.parent))  # the checkout that this lies in, whichever is installed
import rai_chain  # noqa: E402

HEAD = '''"""Made by `make stubs`: the signatures that decorators and declarations make."""

from typing import Any, Literal, TypeAlias

from torch import Generator, Tensor
'''
HYPER = """Hyper: TypeAlias = (
    float | Tensor | Schedule | dict[str, Any] | list[Any] | tuple[Any, ...]
)
"""
NAMES = {
    "torch.Tensor": "Tensor",
    "torch._C.Generator": "Generator",
    "typing.": "",
    "Union[int, Literal['tree'], NoneType]": "ParamNdim",
    "int | Literal['tree'] | None": "ParamNdim",
    "rai_chain.data.hyper.Schedule": "Schedule",
    "float | Tensor | Schedule": "Hyper",
    "int | Tensor | Schedule": "Hyper",
}


def annotation(kind):
    text = inspect.formatannotation(kind)
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


def default(value):
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else "..."


def parameters(signature):
    shown, starred = [], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        text = {p.VAR_KEYWORD: "**", p.VAR_POSITIONAL: "*"}.get(p.kind, "") + p.name
        if p.annotation is not p.empty:
            text += f": {annotation(p.annotation)}"
        if p.default is not p.empty:
            text += f" = {default(p.default)}"
        shown.append(text)
    return ", ".join(shown)


def function(name, made):
    line = inspect.getdoc(made).splitlines()[0]
    inside = f"def {name}({parameters(inspect.signature(made))}) -> FunctionLink:"
    return f'{inside}\n    """{line}"""\n'


def kind(name, made):
    line = inspect.getdoc(made).splitlines()[0]
    base = next(b.__name__ for b in made.__mro__[1:] if b.__name__ in rai_chain.optim.__all__)
    signature = inspect.signature(made.__init__)
    return (
        f'class {name}({base}):\n    """{line}"""\n\n'
        f"    def __init__({parameters(signature)}) -> None: ...\n"
    )


def imported(path):
    """name -> the line that brings it, as `__init__.py` has it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for a in node.names:
                module = "." * node.level + (node.module or "")
                yield a.name, f"from {module} import {a.name} as {a.name}\n"


def package():
    lines = dict(imported(ROOT / "__init__.py"))
    made = {n: getattr(rai_chain, n) for n in rai_chain.__all__}
    factories = {n: f for n, f in made.items() if hasattr(f, "definition")}
    text = HEAD + "from .core.link import FunctionLink\nfrom .data.hyper import Schedule\n"
    text += "from .data.rows import ParamNdim\n"
    text += "".join(lines[n] for n in made if n not in factories)
    text += "\n__version__: str\n" + HYPER
    return text + "".join(f"\n{function(n, f)}" for n, f in factories.items())


def optim():
    lines = dict(imported(ROOT / "optim" / "__init__.py"))
    made = {n: getattr(rai_chain.optim, n) for n in rai_chain.optim.__all__}
    declared = {n: k for n, k in made.items() if hasattr(k.__init__, "__signature__")}
    text = HEAD + "from torch.optim import SGD\n\nfrom ..data.hyper import Schedule\n"
    text += "from ..data.rows import ParamNdim\n"
    text += "".join(lines[n] for n in made if n not in declared) + "\n" + HYPER
    order = sorted(declared.items(), key=lambda item: len(item[1].__mro__))
    return text + "".join(f"\n{kind(n, k)}" for n, k in order)


STUBS = {ROOT / "__init__.pyi": package, ROOT / "optim" / "__init__.pyi": optim}

if __name__ == "__main__":
    for path, text in STUBS.items():
        path.write_text(text())
        sys.stdout.write(f"{path}\n")
