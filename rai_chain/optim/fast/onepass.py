"""The step of torch's SGD, Adam and AdamW in one native pass: transformed and stepped in cache.

Native code repeats torch's arithmetic to the bit (kernels/step.cpp). Each kind of step is tried
beside torch's own once in a process; what differs, or does not fit, goes the ordinary way.
"""

import copy
import ctypes
import functools
import math
from array import array
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from ...data.memory import separated
from ...data.plain import ORDINARY
from ...data.tree import Leaves
from ...engine.chunks import flat
from ...kernels import native
from ..bound import Bound
from ..states import Group
from .layer import bare_step, torchs_step
from .program import program_of

KNOWN = torch.__version__.startswith(("2.13.", "2.14.", "2.15."))  # that it was seen to repeat
KINDS = {optim.SGD: 1, optim.Adam: 2, optim.AdamW: 2}
OTHERS = ("foreach", "differentiable", "capturable")  # other ways of torch
NEEDED = {1: ("momentum", "dampening"), 2: ("betas", "eps")}  # of each kind, beside those of both
Rule: Any = namedtuple(
    "Rule",
    "beta1 beta2 lr weight_decay momentum dampening eps "
    "fused maximize nesterov decoupled_weight_decay amsgrad kind contracts",
)
NUMBERS, FLAGS = Rule._fields[2:7], Rule._fields[7:12]
_MOST = torch.finfo(torch.float32).max
USUAL = {"lr": 0.0173, "weight_decay": 0.037, "momentum": 0.83, "dampening": 0.21, "beta2": 0.95}
LENGTHS = (*range(18), *range(507, 530), 2000)  # of what a step is tried on
_CONTRACTS = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
_PROGRAMS: "WeakKeyDictionary[Bound, list[float] | None]" = WeakKeyDictionary()


def one_pass(inner: Optimizer, bounds: Sequence[Bound]) -> bool:
    """Transform all gradients and step, where native code has the bits; whether it was done."""
    kind, parts = KINDS.get(type(inner)), []
    if kind is None or not KNOWN or native.library is None or torchs_step(inner) is None:
        return False
    scaled = hasattr(inner, "grad_scale") or hasattr(inner, "found_inf")
    if scaled or torch._C._len_torch_dispatch_stack():  # a mode sees torch's operations
        return False
    for bound in bounds:
        if bound not in _PROGRAMS:
            _PROGRAMS[bound] = program_of(bound.calls or ())
        rule, program = _rule(kind, bound.group), _PROGRAMS[bound]
        if rule is None or program is None or not bound.safe or not _is_torchs(rule):
            return False
        if (memory := _memory(rule, program, bound.params, inner.state)) is None:
            return False
        parts.append((rule, program, *memory))
    for part in parts:
        _step(*part)
    return True


def _rule(kind: int, group: Group) -> Any:
    """What a group says of a step, where its numbers are Python's and torch goes no other way."""
    if any([name not in group for name in ("lr", "weight_decay", *NEEDED[kind])]):
        return None
    betas = group["betas"] if kind == 2 else (0.0, 0.0)
    numbers = [*betas, *[group.get(name, 0.0) for name in NUMBERS]]
    if any([group.get(name) for name in OTHERS]) or not {float, int}.issuperset(map(type, numbers)):
        return None
    sane = len(betas) == 2 and all([0 <= beta < 1 for beta in betas])
    if not sane or any([_MOST < abs(x) < math.inf for x in numbers]):  # where torch raises
        return None
    flags = [bool(group.get(name)) for name in FLAGS]
    return Rule._make([*numbers, *flags, kind, _CONTRACTS])


@functools.lru_cache(1024)
def _is_torchs(rule: Any) -> bool:
    """Whether such a step has the bits of torch's own, by one that differs in numbers alone."""
    usual = {name: number for name, number in USUAL.items() if getattr(rule, name)}
    beta1 = 0.4 if rule.beta1 < 0.5 else 0.9  # torch.lerp is another in each half
    return _agrees(rule._replace(beta1=beta1, eps=1e-8, **usual))


@functools.cache
def _agrees(rule: Any) -> bool:
    """Whether native steps of parameters of many lengths have the bits of torch's own."""
    theirs: Any = (optim.SGD if rule.kind == 1 else optim.Adam)(_normal(0), lr=1.0)
    (group,), named = theirs.param_groups, {"betas": rule[:2], **rule._asdict()}
    group.update({name: value for name, value in named.items() if name in group})
    for seed in range(1, 4):
        for p, grad in zip(group["params"], _normal(seed), strict=True):
            p.grad = grad
        ours = copy.deepcopy(theirs)
        bare_step(theirs)()
        if seed == 1:  # in which torch makes the states
            continue
        params = ours.param_groups[0]["params"]
        memory = _memory(rule, [], params, ours.state)
        if memory is None:
            return False
        _step(rule, [], *memory)
        for p, q in zip(group["params"], params, strict=True):
            pairs = [(p, q), *[(theirs.state[p][n], ours.state[q][n]) for n in _names(rule)]]
            if not all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs):
                return False
    return True


def _normal(seed: int) -> list[Tensor]:
    """Numbers of many magnitudes in tensors of many lengths."""
    generator = torch.Generator("cpu").manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    return [normal(n) * (2.0 * normal(n)).exp() for n in LENGTHS]


def _names(rule: Any) -> tuple[str, ...]:
    """The states that a step writes, a count last."""
    if rule.kind == 1:
        return ("momentum_buffer",) if rule.momentum else ()
    return "exp_avg", "exp_avg_sq", *("max_exp_avg_sq",) * rule.amsgrad, "step"


def _memory(
    rule: Any, program: list[float], params: Leaves, states: Mapping[Any, Group]
) -> tuple["array[int]", list[Tensor], int] | None:
    """Where the tensors of a step are, those whose versions torch's step counts up, and threads.

    None where there is one that native code does not take, or that torch has not made yet.
    """
    learn: list[Any] = [p for p in params if p is not None and p.grad is not None]
    names = _names(rule)
    own = [states.get(p, {}) for p in learn] if names else []
    columns = [learn, [p.grad for p in learn], *[[x.get(name) for x in own] for name in names]]
    every = [t for column in columns for t in column]
    plain = [type(t) in ORDINARY and t.dtype is torch.float32 and t.is_cpu for t in every]
    if not all(plain) or any([t.is_neg() or t._is_zerotensor() for t in every]):
        return None
    if not torch.is_inference_mode_enabled() and any([t.is_inference() for t in every]):
        return None
    others = every[len(learn) :]
    if separated(others, learn) is not others:  # states and gradients that share memory
        return None
    counts = columns.pop() if rule.kind == 2 else learn
    if not all(map(_are_alike, *columns)) or (rule.kind == 2 and any([x.ndim for x in counts])):
        return None
    written = [*(columns[1] if program else ()), *(counts if rule.kind == 2 else ())]
    if not rule.fused:  # torch's fused steps do not count these up
        written += [t for column in (learn, *columns[2:]) for t in column]
    columns = [counts, *columns, *[learn] * (5 - len(columns))]
    places = [t.data_ptr() for column in columns for t in column]
    words = array("q", [p.numel() for p in learn] + places)
    threads = torch.get_num_threads()
    one_by_one = threads > 1 and separated(learn) is not learn  # parameters that overlap
    return words, written, 1 if one_by_one else threads


def _are_alike(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors are laid out alike, without gaps."""
    contiguous = first.is_contiguous()
    for t in others:
        if t.shape != first.shape:
            return False
        plain = contiguous and t.is_contiguous()
        if not plain and (t.stride() != first.stride() or flat(first) is None):
            return False
    return True


@functools.cache
def _root() -> int | None:
    """What `torch.sqrt` calls, which is not always the nearest number."""
    try:
        library: Any = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.vmsSqrt, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def _step(rule: Any, program: list[float], words: "array[int]", written: Any, threads: int) -> None:
    torch._C._increment_version(written)
    root = None if rule.fused else _root()
    numbers, ops = array("d", rule), array("f", program)
    rule_at, ops_at, words_at = (x.buffer_info()[0] for x in (numbers, ops, words))
    size, count = len(words) // 7, len(ops) // 4
    native.library.step(rule_at, root, ops_at, count, words_at, size, threads)
