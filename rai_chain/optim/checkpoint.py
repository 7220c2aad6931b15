"""Saving, loading and copying optimizers whose links keep states."""

import contextlib
import copyreg
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from ..data.checks import name_of
from ..data.messages import told
from ..links.kinds import misfit
from .bound import Binding, Bound
from .drawn import DrawnTopQ
from .hooks import Hooks
from .layout import Pipeline
from .states import ENDED, LINKS, STATES, TRAINING, UNSEEN, Group, moved, take_apart, unseen

_OF_TORCH = ("_opt_called", "_zero_grad_profile_name", "step")
_MADE_AGAIN = ("defaults", "state", "param_groups", "_bounds", "_pending", "_graphs", "_owner")


def own_attributes(optimizer: Optimizer) -> Group:
    """What to copy of an optimizer: all but hooks and what schedulers attach, as torch does."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if not key.startswith("_optimizer_") and key not in (*_OF_TORCH, *_MADE_AGAIN)
    }


def reduced(optimizer: Any, **more: Any) -> tuple[Any, ...]:
    """What `pickle` and `deepcopy` take of an optimizer with bound pipelines."""
    state = {**own_attributes(optimizer), **more, "_kept_schedules": optimizer._schedules()}
    return copyreg.__newobj__, (type(optimizer),), state  # type: ignore[attr-defined]


def drawn_from(pipeline: Pipeline) -> dict[str, Generator]:
    """The generators that links draw from, by the names of the links."""
    found: dict[str, Generator] = {}
    for link, name in zip(pipeline.links, pipeline.names, strict=True):
        inside = [own for own, _ in link.owner._own()] if isinstance(link, Hooks) else [link]
        found |= {f"{name}": own.generator for own in inside if isinstance(own, DrawnTopQ)}
    return found


def rewound(pipeline: Pipeline) -> contextlib.AbstractContextManager[Any]:
    """What is drawn in a step that raises is drawn again."""
    drawn = drawn_from(pipeline).values()
    return _rewound([(g, g.get_state()) for g in drawn]) if drawn else _NOTHING


_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def _rewound(before: list[tuple[Generator, Tensor]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for generator, state in before:
            generator.set_state(state)
        raise


def generators(optimizers: Sequence[Binding]) -> dict[str, Generator]:
    """The generators whose states are saved: all but torch's default one."""
    every = {k: g for one in optimizers for k, g in drawn_from(one._pipeline).items()}
    return {k: g for k, g in every.items() if g is not torch.default_generator}


def save_generators(optimizers: Sequence[Binding]) -> None:
    """Keep the states of generators where checkpoints find them: in the first group."""
    group = optimizers[0].param_groups[0]
    for name, generator in generators(optimizers).items():
        own = {**group.get(STATES, {}).get(name, {}), "generator": generator.get_state()}
        group[STATES] = {**group.get(STATES, {}), name: own}


def start_states(optimizers: Sequence[Binding]) -> None:
    """Keep what links start with, where no step has been taken yet and there are gradients.

    Distributed checkpoints load only what a fresh optimizer has, and take a first step to see it,
    but not then. Adam and its kin start where they find nothing: beside them nothing is kept.
    """
    plain = getattr(optimizers[0], "inner_opt", optimizers[0])
    finds = type(plain) is not torch.optim.SGD and not isinstance(plain, Binding)
    grads = any(p.grad is not None for group in plain.param_groups for p in group["params"])
    bounds = [one._bound_of(group) for one in optimizers for group in plain.param_groups]
    if plain.state or finds or not grads or not all(bound.holds() for bound in bounds):
        return
    for bound in bounds:
        for i, keeper in enumerate(bound.keepers):
            own = bound.gather(i, {}, bound.params)
            keeper.commit(bound.group, plain.state, bound.params, own, bound.spec)


def load(
    optimizers: Sequence[Binding], loader: Callable[[Group], Any], state_dict: Mapping[str, Any]
) -> None:
    """Load a state dict into optimizers that share their groups; what does not fit is refused.

    Args:
        optimizers: all that keep states of links, the innermost first.
        loader: loads the innermost of all, as torch does.
        state_dict: what was saved.
    """
    _check_form(state_dict)
    groups, saved = optimizers[0].param_groups, state_dict["param_groups"]
    plain_kind: Any = type(getattr(optimizers[0], "inner_opt", optimizers[0]))
    schedules: list[list[Group]] = [[] for _ in optimizers]
    links: dict[Tensor, Group] = {}
    merged = list(saved)
    every = [own for own in state_dict["state"].values() if isinstance(own, Mapping)]
    there = {name for own in every for name in own.get(LINKS, {})}
    for group in saved:  # what stands there before the first step is no state of a link
        kept = group.get(STATES, {}).items()
        there |= {n for n, own in kept if n != ENDED and list(own) != ["generator"]}
    if [len(g["params"]) for g in saved] == [
        len(g["params"]) for g in groups
    ]:  # else torch refuses
        for i, (own, new) in enumerate(zip(groups, saved, strict=True)):
            kept = {k: v for k, v in own.items() if k not in ("params", "param_names", STATES)}
            merged[i] = {**kept, **new}
            states = [state_dict["state"].get(n, {}) for n in new["params"]]
            loaded = {**merged[i], "params": own["params"]}
            for place, one in enumerate(optimizers):
                bound = one._bound_of(own).resumed(loaded)
                one._pipeline.check_numbers(loaded)
                schedules[place].append(bound.schedules)
                one._read(bound, lambda new, own=states: _check(new, own, there, links))  # type: ignore[misc]
            _check_names(optimizers, new.get(STATES, {}), states)
            _check_kept(plain_kind, own["params"], states)
    loader({**state_dict, "param_groups": merged})
    for group in optimizers[0].param_groups:
        if STATES in group and group["params"]:
            group[STATES] = moved(group[STATES], group["params"][0].device)
    for p, own in links.items():
        optimizers[0].state[p][LINKS] = own
    first = optimizers[0].param_groups[0].get(STATES, {}) if groups else {}
    for name, generator in generators(optimizers).items():
        if "generator" in first.get(name, {}):
            generator.set_state(first[name]["generator"].cpu())
    for one, found in zip(optimizers, schedules, strict=True):
        one._rebind(found)


def _check_form(state_dict: Any) -> None:
    """Refuse what no `state_dict` returned."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            f"`state_dict` must be a dict with `state` and `param_groups`  Got: {told(state_dict)}"
        )
    groups = state_dict["param_groups"]
    alike = isinstance(groups, (list, tuple)) and all(isinstance(g, Mapping) for g in groups)
    if not alike or not all("params" in group for group in groups):
        raise TypeError(
            f"`state_dict['param_groups']` must be a list of dicts with `params`  "
            f"Got: {told(groups)}"
        )
    if not isinstance(state_dict["state"], Mapping):
        raise TypeError(f"`state_dict['state']` must be a dict  Got: {told(state_dict['state'])}")


def _check_kept(kind: type[Optimizer], params: list[Tensor], states: list[Group]) -> None:
    """Refuse what an optimizer of torch kept of parameters of other shapes."""
    for i, (p, own) in enumerate(zip(params, states, strict=True)):
        others = own.keys() - {LINKS, TRAINING, "step"}  # which rai-toolbox's Frank-Wolfe counts
        if others and issubclass(kind, Binding):
            raise ValueError(
                f"`state` must be of this chain, with no torch optimizer inside  "
                f"Got: {', '.join(sorted(map(str, others)))} for `params[{i}]`"
            )
        if wrong := misfit(kind, own, p.shape):
            raise ValueError(
                f"`state` must be of these parameters  Got: for `params[{i}]` of shape "
                f"{tuple(p.shape)} {wrong}"
            )


def _check_names(optimizers: Sequence[Binding], once: Group, states: list[Group]) -> None:
    known = {name for one in optimizers for name in one._pipeline.names} | {ENDED}
    every = [*once, *(name for own in states for name in own.get(LINKS, {}))]
    for name in every:
        if name not in known:
            raise ValueError(f"`{STATES}` must be of this chain  Got: the state of {name!r}")


def _check(bound: Bound, states: list[Group], there: set[str], links: dict[Tensor, Group]) -> None:
    """Refuse saved states that are not those of these links and parameters; cast the others.

    A link starts anew where a group or a parameter has nothing of it: there was no gradient yet.
    One of which nothing is anywhere, beside others, is of another chain.
    """
    once, pipeline = bound.group.get(STATES, {}), bound.pipeline
    rows = list(zip(bound.links, pipeline.names, bound.values, strict=True))
    for link, name, values in rows:
        if not link.keeps(values):
            continue
        if there and name not in there:
            _fitted(name, None, {})
        if name not in once and not any(name in own.get(LINKS, {}) for own in states):
            continue
        fresh = link.start(list(bound.params), bound.run(), values)
        parts, rest = take_apart(link, fresh, bound.spec)
        saved = (
            {k: v for k, v in once.get(name, {}).items() if k != "generator"}
            if isinstance(once.get(name, {}), dict)
            else once[name]
        )
        grows = link.completes
        if rest or saved:
            _fitted(name, saved, rest, idle=True, grows=grows)
        parts = [part or unseen(p) for p, part in zip(bound.params, parts, strict=True)]
        for i, (p, part, own) in enumerate(zip(bound.params, parts, states, strict=True)):
            held = own.get(LINKS, {})
            beside = any(n in held for k, n, _ in rows if k.phase == link.phase)
            if beside and link.keeps_leaves:
                leaf = name_of("params", bound.spec, i)
                fitted = _fitted(name, held.get(name), part, grows=grows, where=leaf)
                links.setdefault(p, {})[name] = fitted


def _fitted(
    name: str, saved: Any, fresh: Any, *, idle: bool = False, grows: bool = False, where: str = ""
) -> Any:
    """What was saved, in the dtypes of what is fresh; ValueError where it has another form.

    Args:
        name: of the link.
        saved: from a checkpoint.
        fresh: as the link starts it.
        idle: whether a step or a seed may be there in one of them only.
        grows: whether the first step adds to what is fresh.
        where: the parameter and the keys at which both stand, for messages.
    """
    fit = functools.partial(_fitted, name, idle=idle, grows=grows)
    if isinstance(fresh, dict) and isinstance(saved, dict):
        counters = {"step", "seed"} if idle else set()
        same = saved.keys() - counters == fresh.keys() - counters
        if same or (grows and fresh.keys() - {UNSEEN} <= saved.keys()):
            places = {k: f"{where}: {k}" if where else k for k in saved}
            return {k: fit(v, fresh.get(k, v), where=places[k]) for k, v in saved.items()}
    elif isinstance(fresh, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(fresh) == len(saved):
            return [fit(s, f, where=where) for s, f in zip(saved, fresh, strict=True)]
    elif isinstance(fresh, Tensor) and isinstance(saved, Tensor):
        alike = saved.shape == fresh.shape and saved.layout == fresh.layout
        kinds = [(t.is_floating_point(), t.is_complex(), t.is_meta) for t in (saved, fresh)]
        if alike and kinds[0] == kinds[1]:
            return saved.to(fresh)
    elif saved is not None and type(fresh) is type(saved):
        return saved
    got = "no state" if saved is None else told(saved)
    place = f", at `{where}` {told(fresh)}" if where and saved is not None else ""
    raise ValueError(
        f"`{STATES}` must be of this chain and these parameters{place}  Got: {got} for {name!r}"
    )


class Saved(Binding, Optimizer):
    """How an optimizer around another one is saved, loaded, copied and pickled."""

    inner_opt: Optimizer
    _chain: "tuple[Any, ...]"
    _owner: Any  # a weak reference to the chain that this is a member of
    _graphs: Any

    def _stack(self) -> list[Binding]:
        """This optimizer and those inside that have links too, the innermost first."""
        inner = self.inner_opt
        if isinstance(inner, Saved):
            return [*inner._stack(), self]
        return [inner, self] if isinstance(inner, Binding) else [self]

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, and so of this one: they share it."""
        if owner := self._owner and self._owner():
            return owner.state_dict()  # type: ignore[no-any-return]
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        stack = self._stack()
        for one in stack:
            one._before_saving()
        save_generators(stack)
        start_states(stack)
        state: dict[str, Any] = self.inner_opt.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the next steps equal those of the saved optimizer.

        Args:
            state_dict: from `state_dict`, of this class or of rai-toolbox's. Hyperparameters it
                lacks keep their values.

        Raises:
            ValueError: other param groups, a hyperparameter outside its interval, or the state
                of another chain; nothing has been loaded then.
        """
        if owner := self._owner and self._owner():
            owner.load_state_dict(state_dict)
            return
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        stack = self._stack()
        innermost: Any = stack[0]
        plain = getattr(innermost, "inner_opt", None)
        loader = innermost.load_alone if plain is None else plain.load_state_dict
        load(stack, loader, state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "inner_opt" not in state:
            self.inner_opt.__setstate__(state)
            return
        schedules = state.pop("_kept_schedules")  # from pickle or deepcopy
        self.__dict__.update(state)
        self._bounds, self._graphs = {}, {}
        Optimizer.__setstate__(self, {})
        self._adopt()
        self._rebind(schedules)

    def _adopt(self) -> None:
        """Let the members of a chain share what the chain has."""
        for member in self._chain:
            member.inner_opt, member._owner = self.inner_opt, weakref.ref(self)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inner_opt.__getstate__()
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(self)
