"""What a rank needs of tensors that are used beside its part of another one."""

import torch

from rai_chain.engine.sharded.layout import Axis, Home, Layout, whole
from rai_chain.engine.sharded.part import cut


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
