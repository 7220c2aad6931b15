"""What ranks ask of each other: rounds of reductions, all requests of a round in one buffer.

A request is a generator that yields what is to be reduced and is sent the reduced tensors. Several
run side by side, so that the number of collectives is that of the longest. All ranks take the same
rounds, as what ends a generator has been reduced over them, and the same order within a round: that
in which the requests were made.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ...kernels.fallback import BITS

Groups = tuple[tuple[Any, int], ...]  # (mesh, dimension): a reduction goes over each in turn
Wish = tuple[str, Tensor]  # sum, max or min, and what this rank has
Ask = Generator[list[Wish], list[Tensor], Tensor]


class Request:
    """What is asked of other ranks, and what they answered."""

    def __init__(self, groups: Groups, ask: Ask) -> None:
        self.groups, self.ask = groups, ask
        self.answer: Any = None


def alike(value: Tensor, what: str) -> Ask:
    """Refuse a value that differs between ranks, on all of them: it would lead them apart.

    Args:
        value: any shape, int64 or float64.
        what: of the message, the argument and the rule.
    """
    bits = value.contiguous().view(torch.int64).reshape(-1)
    (found,) = yield [("max", torch.stack([bits, ~bits]))]
    if not torch.equal(found[0], ~found[1]):
        raise ValueError(f"{what}  Got: {value.tolist()}, and others elsewhere")
    return value


class Wait(BaseException):
    """A function needs an answer before it can go on."""


class _Scope:
    """The requests of a function that runs, and the answers to those of its last run."""

    def __init__(self, answers: list[Tensor] | None) -> None:
        self.answers, self.made = answers, 0
        self.open: list[Request] = []


_scope: ContextVar[_Scope | None] = ContextVar("rai_chain_scope", default=None)


@contextmanager
def asking(answers: list[Tensor] | None = None) -> Iterator[_Scope]:
    """Requests are kept until one of their answers is needed, and then sent together."""
    scope = _Scope(answers)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def request(groups: Groups, ask: Ask) -> Request:
    """Ask the ranks of some groups."""
    made, scope = Request(groups, ask), _scope.get()
    if scope is not None:
        if scope.answers is not None and scope.made < len(scope.answers):
            made.answer = scope.answers[scope.made]
        else:
            scope.open.append(made)
        scope.made += 1
    return made


def answer(made: Request) -> Tensor:
    """The answer; where a function may be run again, it is left until all requests are there."""
    if made.answer is None:
        scope = _scope.get()
        if scope is None or made not in scope.open:
            send([made])
        elif scope.answers is None:
            send(scope.open)
            scope.open = []
        else:
            raise Wait
    found: Tensor = made.answer
    return found


def together(tasks: dict[int, Callable[[], Any]]) -> dict[int, Any]:
    """The results of pure functions, what they ask packed: each runs until it must wait.

    Then all requests are sent, and the functions run again with the answers.
    """
    answers: dict[int, list[Tensor]] = {i: [] for i in tasks}
    results: dict[int, Any] = {}
    while len(results) < len(tasks):
        scopes = {}
        for i in [i for i in tasks if i not in results]:
            with asking(answers[i]) as scopes[i], suppress(Wait):
                results[i] = tasks[i]()
        send([made for scope in scopes.values() for made in scope.open])
        for i, scope in scopes.items():
            answers[i] += [made.answer for made in scope.open]
    return results


def send(requests: Sequence[Request]) -> None:
    """Drive the generators side by side, and keep what they return."""
    todo = [(made, next(made.ask)) for made in requests]
    while todo:
        found = iter(_reduced([(m.groups, op, x) for m, wishes in todo for op, x in wishes]))
        left = []
        for made, wishes in todo:
            try:
                left.append((made, made.ask.send([next(found) for _ in wishes])))
            except StopIteration as end:
                made.answer = end.value
        todo = left


def _reduced(wishes: Sequence[tuple[Groups, str, Tensor]]) -> list[Tensor]:
    """Each reduced: one collective for each groups, operation and dtype there is."""
    from torch.distributed import _functional_collectives as functional

    funcol: Any = functional

    packed: dict[tuple[Any, ...], list[int]] = {}
    sent = [_sendable(x, op) for _, op, x in wishes]
    for i, (groups, op, _) in enumerate(wishes):
        packed.setdefault((groups, op, sent[i].dtype, sent[i].device), []).append(i)
    out: list[Any] = [None] * len(wishes)
    for (groups, op, _, _), places in packed.items():
        buffer: Any = torch.cat([sent[i].reshape(-1) for i in places])
        for group in groups:
            buffer = funcol.wait_tensor(funcol.all_reduce(buffer, op, group))
        pieces = buffer.split([sent[i].numel() for i in places])
        for i, piece in zip(places, pieces, strict=True):
            x = wishes[i][2]
            out[i] = _received(piece.view(x.shape), x.dtype, op)
    return out


TOP = torch.iinfo(torch.int64).max


def _sendable(x: Tensor, op: str) -> Tensor:
    """Sums in float64; maxima as integers in the order of the floats, as some lose a NaN."""
    if x.dtype == torch.bool:
        return x.long()
    if not x.is_floating_point():
        return x
    if op == "sum":
        return x.double()
    bits = x.contiguous().view(BITS[x.dtype])
    ordered = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).long()
    return torch.where(x.isnan(), TOP if op == "max" else -TOP, ordered)


def _received(x: Tensor, dtype: torch.dtype, op: str) -> Tensor:
    if op == "sum" or not dtype.is_floating_point:
        return x.to(dtype)
    nan = x.abs() == TOP
    bits = torch.where(nan, 0, x).to(BITS[dtype])
    value = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).view(dtype)
    return torch.where(nan, torch.nan, value)
