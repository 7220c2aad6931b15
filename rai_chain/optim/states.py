"""Where the state of a link lives in an optimizer: with a parameter, or in its group."""

from typing import Any

import torch
from torch import Tensor

from ..core.link import Link
from ..core.wrapper import Wrapper
from ..data.tree import Leaves, Spec, map_leaves
from ..engine.run import Run

Group = dict[str, Any]
LINKS = "links"  # the key of `optimizer.state[param]` under which links keep something
STATES = "link_states"  # the param-group key of what links keep once
UNSEEN = "unseen"
TRAINING = "training"  # the key there of a parameter, while an average is in its place
ENDED = ".ended"  # the key there of the schedules over which a number was written


def take_apart(link: Link, state: Any, spec: Spec) -> tuple[list[Group], Any]:
    """A state as what belongs to each leaf, and what is kept once."""
    leaves: list[Group] = [{} for _ in range(spec.num_leaves)]
    if not isinstance(state, dict):
        return leaves, state
    once = {k: v for k, v in state.items() if k not in link.trees and k != "inner"}
    for key, column in link.columns(state, spec).items():
        for own, value in zip(leaves, column, strict=True):
            if value is not None and not (isinstance(value, dict) and not value):
                own[key] = value
    for place, inside, own_state in _inside(link, state):
        parts, rest = take_apart(inside, own_state, spec)
        if rest:
            once.setdefault("inner", {})[place] = rest
        for own, part in zip(leaves, parts, strict=True):
            if part:
                own.setdefault("inner", {})[place] = part
    return leaves, once


def put_together(link: Link, leaves: list[Any], once: Any, spec: Spec) -> Any:
    """The state of which `take_apart` made this; a leaf that has nothing may be None."""
    if once is not None and not isinstance(once, dict):
        return once
    once = once or {}
    state = {k: v for k, v in once.items() if k != "inner"}
    columns = {key: [None if own is None else own.get(key) for own in leaves] for key in link.trees}
    state.update(link.with_columns(columns, spec))
    if isinstance(link, Wrapper):
        state["inner"] = {}
        for prefix, inner in link.inners.items():
            states = []
            for name, inside in zip(inner.names, inner.links, strict=True):
                place = f"{prefix}{name}"
                parts = [None if o is None else o.get("inner", {}).get(place) for o in leaves]
                rest = once.get("inner", {}).get(place)
                states.append(put_together(inside, parts, rest, spec))
            state["inner"][prefix] = inner.pack(states)
    return state


def _inside(link: Link, state: Any) -> Any:
    for prefix, inner in link.inners.items():
        states = inner.unpack(state["inner"][prefix])
        for name, inside, own in zip(inner.names, inner.links, states, strict=True):
            yield f"{prefix}{name}", inside, own


class Keeper:
    """One link's state in one param group: gathered for a step, and written back after it."""

    def __init__(self, link: Link, name: str) -> None:
        self.link, self.name = link, name

    def gather(self, group: Group, state: Any, leaves: Leaves, run: Run, values: Group) -> Any:
        """The state of the link, started where it is not there yet."""
        link, spec = self.link, run.spec
        mine: list[Any] = [None] * len(leaves)
        if not link.keeps(values):
            return put_together(link, mine, None, spec)
        once = group.get(STATES, {}).get(self.name)
        fresh: Leaves = list(mine)
        if link.keeps_leaves:
            for i, (p, leaf) in enumerate(zip(group["params"], leaves, strict=True)):
                held = state.get(p) if leaf is not None else None
                if held and TRAINING in held:
                    raise ValueError("`train()` must be called before `step`  Got: `eval()`")
                mine[i] = held.get(LINKS, {}).get(self.name) if held else None
                if mine[i] is None and leaf is not None:
                    fresh[i] = p
        elif once is None:
            fresh = list(group["params"])
        if any(p is not None for p in fresh) or link.lacks(once, values):
            started, rest = take_apart(link, link.start(fresh, run, values), spec)
            if all(p is None for p in fresh) and group["params"]:
                rest = moved(rest, group["params"][0].device)
            once = _merged(rest, once)
            for i, part in enumerate(started):
                if fresh[i] is not None and mine[i] is None:
                    mine[i] = part
        return put_together(link, mine, once, spec)

    def joined(self, state: Any, fresh: Any, spec: Spec) -> Any:
        """A state that goes on, with what is fresh for leaves of which it has nothing."""
        parts, once = take_apart(self.link, state, spec)
        more, rest = take_apart(self.link, fresh, spec)
        both = [part or other for part, other in zip(parts, more, strict=True)]
        return put_together(self.link, both, _merged(rest, once), spec)

    def commit(self, group: Group, state: Any, leaves: Leaves, new: Any, spec: Spec) -> None:
        """Keep the state after a step."""
        parts, once = take_apart(self.link, new, spec)
        idle = self.link.keeps_leaves and all(leaf is None for leaf in leaves)
        if once or idle:  # so that a checkpoint tells a link that waits from one that is not there
            group[STATES] = {**group.get(STATES, {}), self.name: once or {}}
        for p, part, leaf in zip(group["params"], parts, leaves, strict=True):
            if leaf is not None and self.link.keeps_leaves:
                held = state[p]
                held[LINKS] = {**held.get(LINKS, {}), self.name: part or unseen(p)}


def unseen(p: Tensor) -> Group:
    """What stands for a parameter that a link does not see: checkpoints want something of each."""
    return {UNSEEN: torch.ones((), device=p.device)}


def _merged(fresh: Any, saved: Any) -> Any:
    """What was saved, completed by what is new."""
    if not isinstance(fresh, dict) or not isinstance(saved, dict):
        return fresh if saved is None else saved
    return {**fresh, **{k: _merged(fresh.get(k), v) for k, v in saved.items()}}


def moved(states: Any, device: torch.device) -> Any:
    """States on the device of their parameters; the states of generators stay on the host."""
    return map_leaves(
        lambda x: x.to(device) if isinstance(x, Tensor) and x.dtype != torch.uint8 else x, states
    )
