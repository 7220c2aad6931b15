"""The public names, by the page that shows them: found, never listed by hand."""

import importlib
import inspect
import pkgutil
from typing import Any

import rai_chain
from rai_chain import GradientTransformation, Link, Wrapper
from rai_chain.core.define import Decorator
from rai_chain.links.schedules import Schedule

# Page -> what stands at its top. A name goes to the first kind that it is of; see `kind`.
KINDS = {
    "elements": "Gradient links that see each element by itself.",
    "rows": "Gradient links that see rows: ``param_ndim`` says what a row is, see :doc:`/choose`.",
    "leaves": "Gradient links that see a whole tensor in its own shape.",
    "trees": "Gradient links that see all tensors at once.",
    "steps": "Links that make the new parameter of the gradient.",
    "constraints": "Parameter links: they come after the step and mend the new parameter.",
    "sets": "The projections as plain functions, without a pipeline.",
    "optimizers": "Chains with a name: the optimizers, made of the links of the other pages.",
    "schedules": "Functions of the step, to be given in place of any hyperparameter's number.",
    "wrappers": "Links around pipelines.",
    "writing": "What pipelines are made with, and what a link of your own is written with.",
    "tools": "Plain functions beside the pipelines.",
}
SCOPES = {"element": "elements", "row": "rows", "leaf": "leaves", "tree": "trees"}


def modules() -> dict[str, Any]:
    """Public module -> itself: those of the package that say what is public."""
    found = {"rai_chain": rai_chain}
    for info in pkgutil.iter_modules(rai_chain.__path__):
        module = importlib.import_module(f"rai_chain.{info.name}")
        if not info.name.startswith("_") and hasattr(module, "__all__"):
            found[f"rai_chain.{info.name}"] = module
    return found


def public() -> dict[str, Any]:
    """Full name -> object, each once: under the shortest name that it has."""
    found: dict[str, Any] = {}
    for name, module in modules().items():
        for own in module.__all__:
            made = getattr(module, own)
            if not inspect.ismodule(made) and not any(made is other for other in found.values()):
                found[f"{name}.{own}"] = made
    return found


def kind(name: str, made: Any) -> str:
    """The page of a public name: of a submodule, its own; else what it is."""
    module, own = name.rsplit(".", 1)
    if module not in ("rai_chain", "rai_chain.wrappers"):
        return module.removeprefix("rai_chain.")
    if own.startswith("project_"):
        return "sets"
    definition = getattr(made, "definition", None)
    if definition is not None:
        phases = {"step": "steps", "parameter": "constraints"}
        return phases.get(definition.phase) or SCOPES[definition.scope]
    if isinstance(made, Decorator) or made in (GradientTransformation, Link, Wrapper):
        return "writing"
    home = made.__module__.rsplit(".", 1)[-1]
    returned = inspect.signature(made).return_annotation
    if home in ("schedules", "cycles") or (isinstance(made, type) and issubclass(made, Schedule)):
        return "schedules"
    wraps = inspect.isclass(returned) and issubclass(returned, Wrapper)
    if wraps or (home == "parts" and inspect.isfunction(made)):
        return "wrappers"
    if inspect.isclass(returned) and issubclass(returned, GradientTransformation):
        defined = made.__module__.startswith("rai_chain.core")
        return "writing" if defined else "steps" if issubclass(returned, Link) else "optimizers"
    return "tools" if module == "rai_chain" and not inspect.isclass(made) else "writing"


def pages() -> dict[str, dict[str, Any]]:
    """Page -> {full name: object}, every public name on one."""
    found: dict[str, dict[str, Any]] = {page: {} for page in KINDS}
    for name, made in sorted(public().items()):
        found.setdefault(kind(name, made), {})[name] = made
    return found


def about(page: str) -> str:
    """What stands at the top of a page."""
    if page in KINDS:
        return KINDS[page]
    return inspect.getdoc(importlib.import_module(f"rai_chain.{page}")) or ""


def arguments(made: Any) -> list[inspect.Parameter]:
    """What a name is called with."""
    is_protocol = getattr(made, "_is_protocol", False)
    return [] if is_protocol else [*inspect.signature(made).parameters.values()]


def signature(made: Any) -> str:
    """The arguments with their defaults; nothing of a protocol, which is not called."""
    plain = []
    for p in arguments(made):
        default = p.default
        if default is p.empty:
            pass
        elif isinstance(default, type):
            default = Named(default.__name__)
        elif callable(default) or " at 0x" in repr(default):
            default = Named("...")
        plain.append(p.replace(annotation=p.empty, default=default))
    return str(inspect.Signature(plain))


class Named:
    """Prints as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name
