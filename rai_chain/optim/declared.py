"""The constructors of classes that name their links and their arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from torch.optim import SGD

from ..data.hyper import REQUIRED, shown_type
from ..data.messages import arguments
from ..data.rows import ParamNdim
from ..links.transforms import TINY

_POSITIONAL, _BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_COMMON = {  # argument -> its default and its type
    "param_ndim": (-1, ParamNdim),
    "grad_scale": (1.0, float),
    "grad_bias": (0.0, float),
    "defaults": (None, dict[str, Any] | None),
    "div_by_zero_eps": (TINY, float),
    "generator": (torch.default_generator, Generator),
}
_ATTRIBUTES = {"div_by_zero_eps": "div_by_zero_eps", "generator": "_generator"}


def declared(cls: Any) -> Callable[..., None]:
    """The constructor of a class with `links` and `takes`.

    `takes` names the arguments in order, hyperparameters of the links and common ones alike;
    ``name=None`` gives one another default.
    """
    signature = inspect.Signature([inspect.Parameter("self", _POSITIONAL), *_parameters(cls)])
    base = next(k for k in cls.__mro__ if "takes" not in k.__dict__ and "__init__" in k.__dict__)

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807
        given = arguments(cls.__name__, signature, args, kwargs, partial=True)
        self, more = given.pop("self"), given.pop("inner_opt_kwargs")
        for name, attribute in _ATTRIBUTES.items():
            if name in given and given[name] is not torch.default_generator:
                setattr(self, attribute, given[name])
            given.pop(name, None)
        given = {name: value for name, value in given.items() if value is not REQUIRED}
        base.__init__(self, **given, **more)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _parameters(cls: Any) -> list[inspect.Parameter]:
    own = {}
    for factory in cls.links:
        usual = inspect.signature(factory).parameters
        for name, rule in factory.definition.rules.items():
            own[name] = usual[name].default, shown_type(rule)
    parameters = [
        inspect.Parameter("params", _POSITIONAL, default=None, annotation=Any),
        inspect.Parameter("InnerOpt", _POSITIONAL, default=SGD, annotation=Any),
    ]
    for word in cls.takes.split():
        name, _, other = word.partition("=")
        default, kind = own.get(name) or _COMMON[name]
        default = None if other == "None" else default
        parameters.append(inspect.Parameter(name, _BY_NAME, default=default, annotation=kind))
    more = inspect.Parameter("inner_opt_kwargs", inspect.Parameter.VAR_KEYWORD, annotation=Any)
    return [*parameters, more]
