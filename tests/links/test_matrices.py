"""Muon and Adafactor: torch's numbers, and everything that torch.func does."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import vmap

import rai_chain as rc


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "k": (3, 2, 2, 2), "b": (5,), "s": ()}
    draw = {k: torch.randn(s, dtype=torch.float64, generator=generator) for k, s in shapes.items()}
    return {k: v.to(dtype) for k, v in draw.items()}


def slope(p: Tensor, t: int) -> Tensor:
    return 0.5 * p + torch.cos(torch.arange(p.numel(), dtype=p.dtype) + t).reshape(p.shape)


def train(tx: Any, params: Any, steps: int) -> Any:
    state = tx.init(params)
    for t in range(steps):
        params, state = tx.step(params, {k: slope(p, t) for k, p in params.items()}, state)
    return params


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {}),
        ({"weight_decay": 0.1, "maximize": True}, {"weight_decay": 0.1, "maximize": True}),
        (
            {"beta2_decay": -0.5, "eps": (1e-4, 1e-2), "d": 1.2},
            {"beta2_decay": -0.5, "eps": 1e-4, "min_scale": 1e-2, "d": 1.2},
        ),
        ({"lr": 0.9}, {"lr": 0.9}),
    ],
)
def test_adafactor_equals_torch_over_100_steps(
    options: Any, own: Any, dtype: torch.dtype, bound: float
) -> None:
    params = tensors(dtype)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer, tx = torch.optim.Adafactor(leaves.values(), **options), rc.adafactor(**own)
    state = tx.init(params)
    for t in range(100):
        grads = {k: None if (k, t) == ("b", 5) else slope(p, t) for k, p in params.items()}
        for k, leaf in leaves.items():
            leaf.grad = grads[k]
        optimizer.step()
        params, state = tx.step(params, grads, state)
    for k, leaf in leaves.items():
        torch.testing.assert_close(params[k], leaf.detach(), rtol=bound, atol=bound)


def test_the_memory_of_a_matrix_is_a_row_and_a_column() -> None:
    state = rc.scale_by_factored_rms().init({"w": torch.ones(30, 40), "b": torch.ones(7)})
    sizes = {k: sum(v.numel() for v in tree.values()) for k, tree in state.items() if k != "count"}
    assert sizes == {"row_var": 30, "col_var": 40, "variance": 7}


def test_muon_is_its_formula_and_torchs_to_bfloat16() -> None:
    p = tensors()["w"]
    for shape_of, adjust in ((p, "original"), (p.mT.contiguous(), "match_rms_adamw")):
        ours = theirs = shape_of
        leaf = theirs.clone().requires_grad_()
        optimizer = torch.optim.Muon([leaf], lr=0.1, weight_decay=0.2, adjust_lr_fn=adjust)
        tx = rc.muon(lr=0.1, weight_decay=0.2, adjust_lr_fn=adjust)
        state, mean, exact = tx.init(ours), torch.zeros_like(ours), ours
        rows, columns = ours.shape
        size = (
            max(1, rows / columns) ** 0.5
            if adjust == "original"
            else 0.2 * max(rows, columns) ** 0.5
        )
        for t in range(20):
            g = slope(exact, t)
            mean = 0.95 * mean + 0.05 * g
            x = 0.95 * mean + 0.05 * g
            x = x / x.norm()
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            leaf.grad = g
            optimizer.step()
            ours, state = tx.step(ours, g, state)
            exact = exact * (1 - 0.1 * 0.2) - 0.1 * size * x
            torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(
                ours, leaf.detach(), rtol=0, atol=0.1 * size * 2e-2 * (t + 1)
            )


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (3, 2, 2, 2)])
def test_muons_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tx = rc.scale_by_muon()
    step = tx.update(g, tx.init(g))[0].flatten(1)
    values = torch.linalg.svdvals(step / max(1, step.shape[0] / step.shape[1]) ** 0.5)
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_leaves_what_is_no_matrix_to_adam() -> None:
    params = tensors()
    found = train(rc.muon(lr=0.1, weight_decay=0.1), params, 5)
    alone = train(rc.adamw(lr=0.1, weight_decay=0.1), params, 5)
    assert all(torch.equal(found[k], alone[k]) for k in ("b", "s"))
    assert not any(torch.equal(found[k], alone[k]) for k in ("w", "k"))
    chosen = {"w": True, "k": False, "b": False, "s": False}
    assert torch.equal(train(rc.muon(0.1, matrices=chosen), params, 5)["k"], alone["k"])


@pytest.mark.parametrize("tx", [rc.muon(0.1), rc.adafactor(0.1)], ids=["muon", "adafactor"])
def test_functional(tx: Any) -> None:
    stacked = {k: torch.stack([v, v + 1]) for k, v in tensors().items()}
    together = vmap(lambda p: train(tx, p, 4))(stacked)
    for i in range(2):
        alone = train(tx, {k: v[i] for k, v in stacked.items()}, 4)
        torch.testing.assert_close({k: v[i] for k, v in together.items()}, alone)
    w = tensors()["w"].requires_grad_()
    assert gradcheck(lambda w: (train(tx, {"w": w}, 3)["w"] ** 2).sum(), [w], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tx", [rc.muon(0.1), rc.adafactor(0.1)], ids=["muon", "adafactor"])
def test_half_precision_equals_float32_to_a_rounding(tx: Any, dtype: torch.dtype) -> None:
    half = tensors(dtype)
    state, exact = tx.init(half), tx.init({k: v.float() for k, v in half.items()})
    for t in range(20):
        grads = {k: slope(p, t) for k, p in half.items()}
        updates, state = tx.update(grads, state, params=half)
        floats = ({k: v.float() for k, v in tree.items()} for tree in (grads, half))
        true, exact = tx.update(next(floats), exact, params=next(floats))
        for k, u in updates.items():
            eps = torch.finfo(
                dtype
            ).eps  # a step is 0.1 large: 1e-2 * eps is a tenth of its rounding
            torch.testing.assert_close(u.float(), true[k], rtol=2 * eps, atol=1e-2 * eps)
        half = rc.apply_updates(half, updates)
