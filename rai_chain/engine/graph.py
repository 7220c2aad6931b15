"""Compiled graphs, each with limits of its own."""

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch

_numbers = itertools.count()


def graph_of(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function compiled as one graph.

    The compiler counts the graphs of a code object, wherever it came from, and refuses the ninth:
    each call here makes a code object of its own.
    """

    def graph(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = graph.__code__.replace(co_name=f"graph_{next(_numbers)}")
    own = types.FunctionType(code, graph.__globals__, None, None, graph.__closure__)
    return torch.compile(own, fullgraph=True, **options)
