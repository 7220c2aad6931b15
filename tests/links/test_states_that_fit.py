"""A state of other shapes is refused by the leaf's name and both shapes, whatever keeps it."""

import copy

import pytest
import torch
from helpers import identical
from test_laws import COMBINATORS, FACTORIES, VARIANTS, make
from test_wrappers import step

import rai_chain
from rai_chain import from_torch

KINDS = ["SGD", "Adam", "RMSprop", "Adafactor", "ASGD", "Rprop", "NAdam"]
MADE = {name: lambda name=name: make(name) for name in (*FACTORIES, *VARIANTS, *COMBINATORS)}
MADE |= {
    f"from_torch {kind}": lambda kind=kind: from_torch(
        getattr(torch.optim, kind), lr=0.1, **({"momentum": 0.9} if kind == "SGD" else {})
    )
    for kind in KINDS
}


def stateful(name):
    state = MADE[name]().init({"a": torch.zeros(2, 3)})
    shapes = [x.shape for x in torch.utils._pytree.tree_leaves(state)]
    return name.startswith("from_torch") or torch.Size([2, 3]) in shapes


@pytest.mark.parametrize("name", sorted(filter(stateful, MADE)))
@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (2, 1), (6,), ()])
def test_a_state_of_another_shape_is_refused(name, shape):
    tx, p = MADE[name](), {"a": torch.zeros(shape)}
    state = step(tx, p, {"a": torch.ones(shape)}, tx.init(p))[1]
    grads = {"a": torch.ones(2, 3)}
    before = copy.deepcopy((grads, state))
    with pytest.raises(ValueError, match=r"'a'\].*  Got: "):
        step(tx, {"a": torch.zeros(2, 3)}, grads, state)
    assert identical((grads, state), before)


def test_a_checkpoint_of_another_shape_is_refused_by_leaf_and_shapes():
    for tx in (rai_chain.ema(0.9), rai_chain.error_feedback(rai_chain.top_q(0.5))):
        one, other = (torch.zeros(s).requires_grad_() for s in ((2, 3), (3, 2)))
        saved, fresh = tx.optimizer([one]), tx.optimizer([other])
        one.grad = torch.ones(2, 3)
        saved.step()
        with pytest.raises(ValueError, match=r"`params\[0\]: .*\(3, 2\)  Got: .*\(2, 3\)"):
            fresh.load_state_dict(saved.state_dict())
        assert not fresh.state
