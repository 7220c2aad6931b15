"""`normalize_std` against torch's deviation in float64, and where there is none."""

import pytest
import torch

import rai_chain as rc


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_rows_over_their_deviation(size, offset):
    generator = torch.Generator().manual_seed(0)
    g = ((torch.randn(5, 40, generator=generator) + offset) * size).float()
    expected = g.double() / g.double().std(1, keepdim=True)
    torch.testing.assert_close(rc.normalize_std().map(g).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(rc.normalize_std().map(g.double()), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_row_of_equal_elements_stays(dtype):
    for g in (torch.full((3, 7), 0.1, dtype=dtype), torch.full((3, 1), 5.0, dtype=dtype)):
        assert torch.equal(rc.normalize_std().map(g), g)


def test_a_deviation_below_eps_stays():
    g = torch.tensor([[1.0, 1.001], [1.0, 3.0]])
    out = rc.normalize_std(eps=0.1).map(g)
    assert torch.equal(out[0], g[0]) and not torch.equal(out[1], g[1])


def test_z_scores():
    g = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tx = rc.chain(rc.centralize(), rc.normalize_std())
    out, _ = tx.update(g, tx.init(g))
    torch.testing.assert_close(out.mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(out.std(1), torch.ones(4, dtype=torch.float64))
