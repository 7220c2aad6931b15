"""
Records of a run
================

What passes at a place of a pipeline, one number a step, kept in its state and drawn.
"""

import torch
from torch.func import grad

from rai_chain import adam, chain, clip_by_global_norm, global_norm, plot, record, records, top_q
from rai_chain import sparsity as share_of_zeros

# %%
# Three records: the norm before and after clipping, and how sparse the gradient is then.
tx = chain(
    record("norm", global_norm),
    clip_by_global_norm(2.0),
    record("norm, clipped", global_norm),
    top_q(lambda step: 0.9 - 0.009 * step, param_ndim=None),
    record("share of zeros", share_of_zeros),
    adam(0.05),
)

# %%
# The run: a valley that bends.
weights = torch.linspace(1.0, 30.0, 50)


def loss(x):
    return (weights * (x - 1.0) ** 2).sum() / 50 + (x[1:] - x[:-1] ** 2).square().sum()


x = torch.zeros(50)
state = tx.init(x)
for _ in range(100):
    x, state = tx.step(x, grad(loss)(x), state)
figure = plot.records(records(state))
