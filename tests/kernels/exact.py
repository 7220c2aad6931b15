"""What the kernels are compared with: exact rational arithmetic, and hard rows."""

import math
from fractions import Fraction

import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LARGEST = {
    torch.float64: 300,
    torch.float32: 37,
    torch.bfloat16: 37,
    torch.float16: 4,
}


def distance(row, center, p):
    """The p-distance of two rows, for p = 2 squared."""
    gaps = (abs(Fraction(a) - Fraction(b)) for a, b in zip(row, center, strict=True))
    return sum(gaps) if p == 1 else sum(gap * gap for gap in gaps)


def simplex(row, scale):
    """The projection onto the simplex, by the sort of Duchi et al., figure 1."""
    ordered = sorted(map(Fraction, row), reverse=True)
    total, theta = Fraction(0), ordered[0]  # where the scale is 0
    for count, value in enumerate(ordered, 1):
        total += value
        if (total - scale) / count < value:
            theta = (total - scale) / count
    return [max(Fraction(value) - theta, Fraction(0)) for value in row]


def hard_rows(dtype, seed, n=2):
    """Rows of any magnitude, with a center that is near or far, large or small, or None."""
    generator = torch.Generator().manual_seed(seed)
    pick = lambda *options: options[int(torch.randint(len(options), (), generator=generator))]  # noqa: E731
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    size, largest = pick(1, 2, 3, 5, 16, 17, 40), LARGEST[dtype]
    magnitude = 10.0 ** pick(0, 0, 0, 2, -3, largest - 1, -largest, -largest - 5)
    x = normal(n, size)
    x = pick(x, x, x.round(), x * torch.exp(4 * normal(n, size)))
    x = (x * magnitude).to(dtype)
    center = None
    if pick(True, True, False):
        center = (normal(n, size) * magnitude * 10.0 ** pick(0, 0, 1, -3, -12, -30)).to(dtype)
        if pick(True, False):
            x = (center.double() + normal(n, size) * magnitude * pick(1e-2, 1e-4)).to(dtype)
    x = x.nan_to_num(0.0, 1.0, -1.0)
    center = None if center is None else center.nan_to_num(0.0, 1.0, -1.0)
    own = float((x.double() - (0 if center is None else center.double())).abs().sum(1)[0])
    radius = pick(1.0, 0.1, magnitude, 0.3 * size * magnitude, 1e-3 * magnitude, 0.0, own)
    return x, center, radius if math.isfinite(radius) else 1.0
