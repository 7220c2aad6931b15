"""`eval` and `train` of an optimizer: averages in the place of the parameters, and back."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from ..core.link import Link
from ..links.averages import AVERAGES, averages_in
from .states import LINKS, TRAINING


class Evaluation:
    """What an optimizer lends: `eval` and `train`, or what else its inner optimizer has."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name in ("eval", "train") and "_pipeline" in own and _average(own["_pipeline"].links):
            return partial(_put if name == "eval" else _put_back, self)
        found = None if name.startswith("_") else getattr(own.get("inner_opt"), name, None)
        if not callable(found):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found


def _average(links: Iterable[Link]) -> bool:
    return any(
        not link.trees.isdisjoint(AVERAGES) or any(_average(t.links) for t in link.inners.values())
        for link in links
    )


@torch.no_grad()
def _put(optimizer: Any) -> None:
    """Put the average of each parameter into it, and keep what was there in its state."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            own = optimizer.state.get(p, {})
            found = averages_in(own.get(LINKS, {}))
            if len(found) > 1:
                raise ValueError(
                    f"`eval` must find one average of each parameter  Got: {len(found)} of them"
                )
            if found and TRAINING not in own:
                own[TRAINING] = p.detach().clone()
                p.copy_(found[0])


@torch.no_grad()
def _put_back(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if TRAINING in (own := optimizer.state.get(p, {})):
                p.copy_(own.pop(TRAINING))
