"""Tensors beside a rank's part of another one, and norms of rows that ranks share."""

import pytest
import torch
from test_selection_of_shards import together

from rai_chain.engine.sharded.layout import Axis, Home, Layout, whole
from rai_chain.engine.sharded.nearest import norm
from rai_chain.engine.sharded.part import cut
from rai_chain.kernels.norms import row_norm


def layout(*axes):
    return Layout(Home(None, (), axes), axes)


def test_a_rank_without_rows_needs_no_values_of_rows():
    """Of one row too, which is not broadcast: one of two ranks has it, the other has none."""
    k = torch.tensor([3])
    for here in (0, 1):
        rows = Axis(1, here, (0,), lambda here=here: torch.arange(here), ranks=2)
        assert cut(k, layout(rows)).tolist() == [3] * here


def test_what_is_broadcast_stays_and_the_rest_is_cut():
    rows = Axis(4, 2, (0,), lambda: torch.tensor([1, 3]), ranks=2)
    value = torch.arange(8.0).reshape(4, 2)
    assert cut(value, layout(rows, whole(2))).tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert cut(value[:1], layout(rows, whole(2))).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("p", [1.5, 2, 3, 7, 40])
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e37, 1e300])
def test_a_norm_over_ranks_is_that_of_one(p, size):
    """As exact at every magnitude, where the ranks' parts differ by orders as well."""
    rows = size * torch.randn(50, 75 * 4, generator=torch.Generator().manual_seed(0)).double()
    rows[:10, 75:] *= 1e-5
    rows[0] = 0.0
    expected = row_norm(rows, p)
    for found in together([norm(part, p) for part in rows.split(75, 1)])[0]:
        assert (found - expected).abs().le(6e-16 * expected).all()
