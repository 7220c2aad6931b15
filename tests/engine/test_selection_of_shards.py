"""Selection of rows whose columns ranks share, with ranks that are generators side by side."""

import pytest
import torch

from rai_chain.engine.sharded.layout import Axis
from rai_chain.engine.sharded.selection import keep_mask
from rai_chain.kernels.fallback import keep_mask_by_sorting

KINDS = {
    "normal": lambda x, u: x,
    "ties": lambda x, u: x.round(),
    "zeros": lambda x, u: x * (u < 0.2),
    "signs": lambda x, u: x.sign(),
    "nan": lambda x, u: x.where(u > 0.15, torch.nan),
    "inf": lambda x, u: x.where(u > 0.1, torch.inf),
    "small": lambda x, u: x * 1e-42,
    "large": lambda x, u: x * 1e37,
    "one rank has the large ones": lambda x, u: x.abs().sort(1).values,
}


def together(ranks):
    """What the requests return, and how many rounds they took; all end in the same one."""
    wishes, rounds = [next(rank) for rank in ranks], 0
    while True:
        rounds, found = rounds + 1, []
        for own in zip(*wishes, strict=True):
            parts = torch.stack([x for _, x in own])
            found.append(parts.sum(0).to(parts.dtype) if own[0][0] == "sum" else parts.amax(0))
        wishes, ended = [], []
        for rank in ranks:
            try:
                wishes.append(rank.send(found))
            except StopIteration as end:
                ended.append(end.value)
        if ended:
            assert not wishes
            return ended, rounds


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_keep_what_one_would(kind, dtype):
    g = torch.Generator().manual_seed(len(kind))
    short = (1, 1, 2), (2, 7, 8), (40, 50, 4)  # put together
    narrow = (60, 120, 4), (200, 110, 2)  # histograms of 8 and of 4 bins
    for n, size, count in ((1, 4000, 3), (3, 300, 2), *short, *narrow):
        x, u = torch.randn(2, n, size, generator=g, dtype=torch.float64)
        x = KINDS[kind](x, u).to(dtype)
        k = torch.randint(size + 1, (n,), generator=g)
        for own in (torch.arange(size) * count // size, torch.randint(count, (size,), generator=g)):
            places = [(own == rank).nonzero()[:, 0] for rank in range(count)]
            axes = [
                Axis(size, len(at), (0,), lambda at=at: at, ranks=count)  # type: ignore[misc]
                for at in places
            ]
            asked = [keep_mask(x[:, a.places], k, axis=a) for a in axes]
            kept, _ = together(asked)
            mask = torch.empty(n, size, dtype=torch.bool)
            for at, part in zip(places, kept, strict=True):
                mask[:, at] = part
            assert torch.equal(mask, keep_mask_by_sorting(x, k))


def test_rounds_of_long_rows_are_few():
    x = torch.randn(1, 1 << 18, generator=torch.Generator().manual_seed(0))
    half = 1 << 17
    for k in (100, 2_000, half):
        axes = [
            Axis(2 * half, half, (0,), lambda i=i: torch.arange(half) + i, ranks=2)
            for i in (0, half)
        ]
        asked = [keep_mask(x[:, a.places], torch.tensor([k]), axis=a) for a in axes]
        assert together(asked)[1] <= 4
