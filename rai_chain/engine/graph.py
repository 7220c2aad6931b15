"""Compiled graphs, each with limits of its own."""

import types
from collections.abc import Callable
from typing import Any

import torch


def graph_of(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function compiled as one graph.

    The compiler counts the graphs of a code object, wherever it came from, and refuses the ninth:
    each call here makes a code object of its own.
    """

    def graph(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = graph.__code__.replace(co_name=f"graph_{id(graph)}")
    own = types.FunctionType(code, graph.__globals__, None, None, graph.__closure__)
    own.__wrapped__ = graph  # type: ignore[attr-defined]  # so that no other has its id
    return torch.compile(own, fullgraph=True, **options)
