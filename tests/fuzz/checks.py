"""The checks: a link beside its reference, what is kept between steps, and the homes."""

import contextlib
import functools
import math
from unittest.mock import patch

import references as ref
import torch
from draw import FACTORIES, Draw
from references import need, told
from torch.utils._pytree import tree_leaves

import rai_chain as rc
from rai_chain.kernels import native

fallback = functools.partial(patch.object, native, "library", None)
OPEN = ("scale", "bias", "linf_ball", "l1q_oracle")  # where a NaN need not fill its row


def links(d, x):
    """name -> (link, reference of a row, its arguments, whether it knows special floats)."""
    own = x.double().abs().nan_to_num(0.0, 1.0)
    most, total = torch.finfo(x.dtype).max, min(float(own.sum()), 1e300)
    largest = float(own.max()) if x.numel() else 1.0
    a = d.pick(1.0, 0.1, 0.0, largest, 0.3 * total, 1e-3 * total, total, 8 / 255)
    a = torch.tensor(min(a, most), dtype=x.dtype).item() if d.rarely(0.3) else a
    c = d.pick(1.0, 1e-3, 1e-30, 1e-12) * d.pick(1, -1, 0.1) * (largest or 1.0)
    c = d.pick(None, torch.tensor(max(-most, min(c, most)), dtype=x.dtype).item())
    low, high = sorted(torch.tensor([d.gauss(0, 1), d.gauss(0, 1)], dtype=x.dtype).tolist())
    q, k, p = d.pick(0.0, 1.0, d.random()), d.randint(0, 9), d.pick(1, 1.5, 2, 2, 3, 10, math.inf)
    b, eps, rows = min(a, most), d.pick(0.0, 1e-50, 1e-12, 1.0), {"param_ndim": d.param_ndim(x)}
    part, first = (lambda n: round((1 - q) * n)), (lambda n: k)
    bounds = lambda v: v if v != v else min(max(v, low), high)  # noqa: E731
    each = ref.elements
    return {
        "top_q": (rc.top_q(q, **rows), ref.selected, (part,), True),
        "top_k": (rc.top_k(k, **rows), ref.selected, (first,), True),
        "one_hot_sign": (rc.one_hot_sign(**rows), ref.one_hot_sign, (), True),
        "clamp": (rc.clamp(low, high), each, (bounds,), True),
        "box": (rc.box(low, high), each, (bounds,), True),
        "sign": (rc.sign(), each, (ref.sign,), True),
        "zero_nans": (rc.zero_nans(), each, (lambda v: v if v == v else 0.0,), True),
        "scale": (rc.scale(low), each, (lambda v: v * low, 0.51), False),
        "bias": (rc.bias(low), each, (lambda v: v + low, 0.51), False),
        "normalize": (rc.normalize(p, eps, **rows), ref.normalize, (p, eps), False),
        "clip_by_norm": (rc.clip_by_norm(a, p, **rows), ref.clip_by_norm, (a, p), False),
        "clip_by_global_norm": (rc.clip_by_global_norm(a, p), ref.clip_by_norm, (a, p), False),
        "l1_ball": (rc.l1_ball(a, c, **rows), ref.ball, (1, a, c), False),
        "l2_ball": (rc.l2_ball(a, c, **rows), ref.ball, (2, a, c), False),
        "linf_ball": (rc.linf_ball(a, c), ref.linf_ball, (a, c), False),
        "simplex": (rc.simplex(b, **rows), ref.simplex, (b,), False),
        "l1_oracle": (rc.l1_oracle(b, **rows), ref.oracle, (1, b, lambda n: 1), False),
        "l1q_oracle": (rc.l1q_oracle(q, b, **rows), ref.oracle, (1, b, part), False),
        "l2_oracle": (rc.l2_oracle(b, **rows), ref.oracle, (2, b), False),
        "group_soft_threshold": (
            rc.group_soft_threshold(a, **rows),
            ref.group_soft_threshold,
            (a,),
            False,
        ),
        "centralize": (rc.centralize(**rows), ref.centralize, (), False),
    }


def rows_of(x, tx):
    """The rows that a link sees, as lists."""
    if tx.scope != "row":
        return [x.double().reshape(-1).tolist()]
    ndim = tx.links[0].param_ndim
    dims = x.ndim if ndim is None else ndim if ndim >= 0 else x.ndim + ndim
    lead = math.prod(x.shape[: max(0, x.ndim - dims)])
    return x.double().reshape(lead, -1).tolist() if x.numel() else []


def a_link(d):
    """Every row is what the reference says, in every way to call it."""
    x = d.layout(d.values(d.shape(), d.dtype(), special=True))
    table = links(d, x)
    name = d.choice(sorted(table))
    tx, judge, arguments, special = table[name]
    yield f"tx = rc.{tx!r}", f"x = {told(x)}"
    before = x.clone()
    y = apply(tx, x)
    need(same(x, before), "an input was written")
    for row, got in zip(rows_of(x, tx), rows_of(y, tx), strict=True):
        if special or all(map(math.isfinite, row)):
            try:
                judge(got, row, x.dtype, *arguments)
            except ref.WrongError as error:
                need(False, f"{error}\n  in the row", row, "\n  got", got)
        elif any(v != v for v in row) and name not in OPEN:
            need(all(v != v for v in got), "NaN is hidden: got", got)
    if tx.links[0].phase == "gradient":
        z = alike(x)
        need(apply(tx, z, inplace=True) is z and same(z, y), "in place differs:", z)
    with fallback():
        need(same(apply(tx, x), y), "the fallback differs:", apply(tx, x))
    with default(torch.bfloat16):
        need(same(apply(tx, x), y), "with another default dtype it differs:", apply(tx, x))
    leaf = alike(x).requires_grad_()
    out = apply(tx, leaf)
    need(same(out.detach(), y), "under autograd it differs:", out.detach())
    rows = rows_of(x, tx) if x.dtype.itemsize > 2 else [[math.nan]]
    tame = all(sum(map(abs, row)) == 0.0 or 0.1 < sum(map(abs, row)) < 1e4 for row in rows)
    if out.requires_grad and tame and not (name == "normalize" and arguments[1] < 1e-30):
        (slope,) = torch.autograd.grad(out.sum(), leaf)
        need(slope.isfinite().all(), "the derivative is", slope)


def apply(tx, x, **options):
    if tx.links[0].phase == "parameter":
        return tx.map(x)
    return tx.update(x, tx.init(x), **options)[0]


def alike(x):
    """A copy that lies in memory as this tensor, where its elements are apart."""
    if 0 in x.stride():
        return x.clone()
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


@contextlib.contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def same(a, b):
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.25), b.nan_to_num(7.25))


# ------------------------------------------------------------------ what is kept between steps


def kept_between_steps(d):
    """Averages, sums and errors of many steps, gradients that are None among them."""
    dtype, steps = d.dtype(), d.pick(3, 10, 10, 10, 30, 300)
    b1, b2, eps = d.pick(0.0, 0.5, 0.9, 0.99), d.pick(0.9, 0.999), d.pick(1e-8, 1e-4)
    name, tx, reference, arguments = d.pick(
        ("trace", rc.trace(b1), ref.trace, (b1,)),
        ("ema", rc.ema(b2), ref.ema, (b2,)),
        ("adam", rc.scale_by_adam((b1, b2), eps), ref.adam, (b1, b2, eps)),
        ("rms", rc.scale_by_rms(b2, eps), ref.rms, (b2, eps)),
        ("accumulate", rc.accumulate(rc.identity(), steps), ref.mean, (steps,)),
        ("errors", rc.error_feedback(rc.top_k(1, param_ndim=None)), None, ()),
    )
    count, size, steady = d.pick(1, 2), d.pick(1, 2, 3), d.rarely(0.3)
    yield f"tx = rc.{tx!r}", f"{steps} steps of {count} leaves of {size} in {dtype}"
    largest = torch.finfo(dtype).max
    much = largest / (2 if dtype == torch.float16 else 3000)  # their sum is in float32
    scale = d.pick(1.0, 1.0, 1e-3, 1e-4, 300.0, much if name == "accumulate" else 1.0)
    params = [torch.zeros(size, dtype=dtype).requires_grad_() for _ in range(count)]
    places = [(i, j) for i in range(count) for j in range(size)]
    memory, gone = {place: {} for place in places}, {place: [] for place in places}
    draws = lambda: [d.values((size,), dtype, ordinary=True).double() for _ in params]  # noqa: E731
    optimizer, state, first = tx.optimizer(params), tx.init([p.detach() for p in params]), draws()
    moved, t = [p.detach().clone() for p in params], [0] * count
    for time in range(steps):
        grads = [
            (g * scale).clamp(-largest, largest).to(dtype) for g in (first if steady else draws())
        ]
        grads = [None if count > 1 and d.rarely(0.15) else g for g in grads]
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        out, state = tx.update(grads, state)
        optimizer.step()
        for i, g in enumerate(grads):
            if g is None:
                need(out[i] is None, "a gradient of None became", out[i])
                continue
            t[i] += 1
            moved[i] = moved[i] + out[i]
            for j, v in enumerate(g.tolist()):
                own, got = memory[i, j], out[i][j].item()
                gone[i, j] += [v, -got]
                if reference is None:
                    continue
                right = reference(v, own, t[i], *arguments)
                own["most"] = max(abs(right), own.get("most", 0.0))
                right = 0.0 if name == "accumulate" and time + 1 < steps else right
                close(got, right, dtype, own["most"], f"step {time}, leaf {i}, place {j}:")
        for p, new in zip(params, moved, strict=True):
            need(same(p.detach(), new), f"step {time}: the optimizer has", p.detach(), "for", new)
    for i, j in places if reference is None else ():
        rounding = 1e-12 if dtype == torch.float64 else 1e-4
        left, bound = math.fsum(gone[i, j]), rounding * scale * len(gone[i, j])
        kept = float(state["error"][i][j])
        need(abs(left - kept) <= bound, f"what is left: {kept!r} for {left!r}")


def close(got, right, dtype, most, where):
    """Within an ulp of the dtype; what is kept has the digits of float32 at least.

    Args:
        most: the largest of the numbers so far, whose rounding is kept as well.
    """
    info, kept = torch.finfo(dtype), 1e-12 if dtype == torch.float64 else 2e-5
    gap = 0.6 * info.eps * abs(right) + kept * most + info.tiny * info.eps
    need(abs(right) > info.max or abs(got - right) <= gap, where, f"{got!r} for {right!r}")


# ------------------------------------------------------------------ the homes


def any_link(d, inside=False):
    """A gradient link that is no optimizer, or a wrapper around some."""
    if not inside and d.rarely(0.2):
        inner = rc.chain(*(any_link(d, True) for _ in range(d.pick(1, 2))))
        return d.pick(
            lambda: rc.accumulate(inner, d.pick(1, 2, 3)),
            lambda: rc.error_feedback(inner),
            lambda: rc.apply_if_finite(inner, 2),
            lambda: rc.masked(inner, lambda params: [i % 2 == 0 for i in range(len(params))]),
        )()
    made = {n: f.definition for n, f in FACTORIES.items()}
    apart = {n for n, m in made.items() if m.phase != "gradient" or m.updates or m.reduces}
    return d.link(d.choice(sorted(made.keys() - apart)))


def homes(d):
    """Pure, in the optimizer, in place and on the fallback: one result to the bit."""
    dtype, count = d.dtype(), d.pick(1, 2, 3, 5)
    late = [n for n, f in FACTORIES.items() if f.definition.phase == "parameter"]
    shapes = [d.pick((3,), (2, 3), (4, 1), (2, 2, 2), (), (50, 200)) for _ in range(count)]
    pure = [d.values(s, dtype, ordinary=True) for s in shapes]
    params = [p.clone().requires_grad_() for p in pure]
    try:
        early = rc.chain(*(any_link(d) for _ in range(d.pick(1, 2, 3))))
        tx = rc.chain(early, *([d.link(d.choice(late))] if d.rarely(0.4) else []))
        state, third, own = tx.init(pure), tx.init(pure), early.init(pure)
    except ValueError:
        return  # values or tensors that do not go together
    yield f"tx = {tx!r}", f"params = {told(pure)}"
    fallen, optimizer = pure, tx.optimizer(params)
    asks = any("value" in link.needs for link in tx.links)
    for time in range(d.pick(1, 2, 4)):
        grads, loss = gradients(d, shapes, dtype), torch.tensor(d.gauss(1.0, 1.0))
        more = {"value": loss} if asks else {}
        apart = [None if g is None else g.clone() for g in grads]
        where = (f"step {time}, grads =", apart, ":")
        updates, after = early.update(grads, own, params=pure, **more)
        need(all(map(same, grads, apart)), *where, "an input was written")
        updates = [None if u is None else u.clone() for u in updates]
        inplace, beside = early.update(list(grads), own, params=pure, inplace=True, **more)
        agree(inplace, updates, *where, "in place")
        agree(tree_leaves(beside), tree_leaves(after), *where, "in place it keeps")
        shared = {id(g): a.clone() for g, a in zip(grads, apart, strict=True) if g is not None}
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else shared[id(g)]
        optimizer.step((lambda loss=loss: loss) if asks else None)
        own, (pure, state) = after, tx.step(pure, apart, state, **more)
        agree([p.detach() for p in params], pure, *where, "the optimizer has")
        with fallback():
            fallen, third = tx.step(fallen, apart, third, **more)
        agree(fallen, pure, *where, "the fallback has")


def agree(got, right, *where):
    for a, b in zip(got, right, strict=True):
        need(not isinstance(a, torch.Tensor) or same(a, b), *where, a, "for", b)


def gradients(d, shapes, dtype):
    """Of any magnitude, layout and memory: None, one tensor for two leaves, windows of one."""
    grads = [d.layout(d.values(s, dtype, ordinary=d.rarely(0.7), special=True)) for s in shapes]
    for i, s in enumerate(shapes):
        last, n = grads[i - 1], math.prod(s)
        if d.rarely(0.1):
            grads[i] = None
        elif i and shapes[i - 1] == s and d.rarely(0.3):
            grads[i] = last
        elif i and d.rarely(0.2) and last is not None and last.is_contiguous():
            grads[i] = last.view(-1)[-n:].view(s) if n <= last.numel() else grads[i]
    return grads


def check(seed):
    """One case; raises with what it takes to see it again.

    Returns:
        Whether there was one: what was drawn may not go together.
    """
    d, seen = Draw(seed), []
    case = d.pick(a_link, a_link, a_link, homes, homes, kept_between_steps)
    try:
        for lines in case(d):
            seen += lines
    except Exception as error:
        told_of = [f"seed {seed} ({case.__name__})", *seen, f"{type(error).__name__}: {error}"]
        again = f"again: python tests/fuzz/run.py --seed {seed}"
        raise ref.WrongError("\n".join([*told_of, again])) from error
    return bool(seen)
