"""What links are to return, in whole numbers and exact sums: nothing here is the library's own."""

import math

import torch

SHIFT = 1074  # every float64 is a whole number of 2**-1074


class WrongError(AssertionError):
    """A result that is not what it has to be."""


def need(holds, *what):
    if not holds:
        raise WrongError(" ".join(x if isinstance(x, str) else told(x) for x in what))


def told(x):
    """A value as code that makes it again, where it is short."""
    if isinstance(x, list):
        return "[" + ", ".join(map(told, x[:20])) + "]"
    if not isinstance(x, torch.Tensor):
        return repr(x)
    if x.numel() > 60:
        return f"<{tuple(x.shape)}, {x.dtype}, strides {x.stride()}>"
    return f"torch.tensor({x.tolist()}, dtype={x.dtype})"


def whole(v):
    above, below = v.as_integer_ratio()
    return above << (SHIFT + 1 - below.bit_length())


def ratio(above, below):
    """A quotient of whole numbers, rounded once."""
    try:
        return above / below
    except OverflowError:
        return math.inf if above > 0 else -math.inf


def near(got, right, dtype, ulps=0.0, scale=0.0, least=0.0):
    """Each number within some ulps of the right one; beyond the dtype's range, at its end.

    Args:
        scale: a magnitude whose ulps count too, where numbers of its size were subtracted.
        least: how many times the dtype's smallest number it may be off.
    """
    info = torch.finfo(dtype)
    for i, (a, b) in enumerate(zip(got, right, strict=True)):
        beyond = math.isinf(a) and a * b > 0 and abs(b) >= info.max * (1 - info.eps)
        gap = ulps * info.eps * max(min(abs(b), info.max), scale) + least * info.tiny * info.eps
        alike = a == b or (a != a and b != b) or beyond
        need(alike or abs(a - b) <= gap, f"at {i}: {a!r} for {b!r}")


# ------------------------------------------------------------------ of one row: got, row, dtype


def elements(got, row, dtype, function, ulps=0.0):
    near(got, list(map(function, row)), dtype, ulps, least=ulps)


def sign(v):
    return v if v != v else float((v > 0) - (v < 0))


def kept(row, k):
    """The k largest magnitudes, NaN before all, the first among equals."""
    out = [0.0] * len(row)
    for i in sorted(range(len(row)), key=lambda i: (row[i] == row[i], -abs(row[i]), i))[:k]:
        out[i] = row[i]
    return out


def selected(got, row, dtype, k):
    near(got, kept(row, k(len(row))), dtype)


def one_hot_sign(got, row, dtype):
    near(got, list(map(sign, kept(row, 1))), dtype)


def unit(row, p):
    """The p-norm, and each element over it; the norm in units of the largest, to stay in range."""
    big = max(map(abs, row), default=0.0)
    factor = 1.0 if p == math.inf or not big else math.fsum((abs(v) / big) ** p for v in row)
    factor = factor ** (1 / p)
    return big * factor, [v / big / factor if big else 0.0 for v in row]


def divided(got, row, dtype, factor, divisor):
    """Each element times a factor over a divisor, rounded once."""
    f, d = whole(factor), whole(divisor) << SHIFT
    right = [ratio(whole(v) * f, d) for v in row]
    near(got, right, dtype, 4 if dtype == torch.float64 else 0.6, least=0.51)


def normalize(got, row, dtype, p, eps):
    own = max(unit(row, p)[0], eps)
    if math.isfinite(own):
        divided(got, row, dtype, 1.0, own or 1.0)


def clip_by_norm(got, row, dtype, max_norm, p):
    own = unit(row, p)[0]
    if own <= max_norm * (1 - 1e-12):
        near(got, row, dtype)
    elif max_norm * (1 + 1e-12) < own < math.inf:
        divided(got, row, dtype, max_norm, own)


def centralize(got, row, dtype):
    largest, (row, n) = max(map(abs, row), default=0.0), (list(map(whole, row)), len(row))
    total = sum(row) if n > 1 else 0
    near(got, [ratio(v * n - total, n << SHIFT) for v in row], dtype, 4, largest, 0.51)


def group_soft_threshold(got, row, dtype, threshold):
    own, units = unit(row, 2)
    digits = torch.finfo(torch.float64).eps / torch.finfo(dtype).eps  # the norm is a float64
    scale = digits * max(map(abs, row), default=0.0)
    near(got, [u * max(own - threshold, 0.0) for u in units], dtype, 4, scale, 0.51)


def on_simplex(row, scale):
    """The nearest point, as whole numbers over a whole number: the sort of Duchi et al."""
    total, shift, number = 0, 0, 1
    for count, value in enumerate(sorted(row, reverse=True), 1):
        total += value
        if count == 1 or total - scale < value * count:
            shift, number = total - scale, count
    return [max(v * number - shift, 0) for v in row], number


def simplex(got, row, dtype, scale):
    right, number = on_simplex(list(map(whole, row)), whole(scale))
    ulps = max(1.01, number / 2) if dtype == torch.float64 else 1.01  # roundings of the threshold
    near(got, [ratio(v, number << SHIFT) for v in right], dtype, ulps, scale, 0.51)


def ball(got, row, dtype, p, epsilon, center):
    """Inside to the bit, outside never, and near the nearest point."""
    c, radius = whole(center or 0.0), whole(epsilon)
    offset, bound = [whole(v) - c for v in row], radius**p
    need(sum(abs(whole(v) - c) ** p for v in got) <= bound, "outside: got", got)
    if sum(abs(v) ** p for v in offset) <= bound:
        need(got == row, "inside, but moved: got", got)
    elif p == 1:
        lengths, n = on_simplex(list(map(abs, offset)), radius)
        moved = [s if v > 0 else -s for s, v in zip(lengths, offset, strict=True)]
        right = [ratio(c * n + v, n << SHIFT) for v in moved]
        ulps = max(8, n / 2) if dtype == torch.float64 else 8  # n roundings of the threshold
        digits = torch.finfo(torch.float64).eps / torch.finfo(dtype).eps  # offsets are float64
        far = digits * max(map(abs, row)) if center else 0.0
        near(got, right, dtype, ulps, max(abs(center or 0.0), epsilon, far), 1.01)
    elif epsilon > 1e-300:  # a float64 norm below has few digits
        units = unit([ratio(v, 1 << SHIFT + 9) for v in offset], 2)[1]
        right = [ratio((c << SHIFT) + whole(u) * radius, 1 << 2 * SHIFT) for u in units]
        near(got, right, dtype, 8, abs(center or 0.0), 1.01)


def linf_ball(got, row, dtype, epsilon, center):
    """Each element the nearest number of the dtype within a distance."""
    c, radius = whole(center or 0.0), whole(epsilon)
    for v, after in zip(row, got, strict=True):
        need(abs(whole(after) - c) <= radius, f"outside: {after!r} for {v!r}")
        if abs(whole(v) - c) <= radius:
            need(v == after, f"inside, but moved: {after!r} for {v!r}")
            continue
        out = torch.tensor(math.inf if whole(v) > c else -math.inf, dtype=dtype)
        further = torch.tensor(after, dtype=dtype).nextafter(out).item()
        best = math.isinf(further) or abs(whole(further) - c) > radius
        need(best, f"not the nearest: {after!r} for {v!r}")


def oracle(got, row, dtype, p, epsilon, k=None):
    """The minimiser over a ball, of the signs of the k largest where k is given."""
    row = row if k is None else list(map(sign, kept(row, k(len(row)))))
    need(sum(abs(whole(v)) ** p for v in got) <= whole(epsilon) ** p, "outside: got", got)
    own, units = unit(row, p)
    if own > 1e-300 or not any(row):  # a float64 norm below has few digits
        near(got, [-u * epsilon for u in units], dtype, 8, least=2.1)


# ------------------------------------------------------------------ of what is kept: g, memory, t


def trace(g, memory, t, momentum):
    memory["b"] = momentum * memory.get("b", 0.0) + g
    return memory["b"]


def ema(g, memory, t, decay):
    memory["m"] = decay * memory.get("m", 0.0) + (1 - decay) * g
    return memory["m"] / (1 - decay**t)


def adam(g, memory, t, b1, b2, eps):
    square = memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * g * g
    return ema(g, memory, t, b1) / (math.sqrt(square / (1 - b2**t)) + eps)


def rms(g, memory, t, alpha, eps):
    memory["v"] = alpha * memory.get("v", 0.0) + (1 - alpha) * g * g
    return g / (math.sqrt(memory["v"]) + eps)


def mean(g, memory, t, k):
    """After k steps; zero before."""
    memory.setdefault("all", []).append(g)
    return math.fsum(memory["all"]) / len(memory["all"])
