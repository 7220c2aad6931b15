"""
An ensemble over a grid
=======================

Forty networks, each with its own learning rate and sparsity, in one ``vmap`` of one step.
"""

import torch
from matplotlib.pyplot import figure
from torch.func import grad, vmap

from rai_chain import chain, sgd, top_q

rates, sparsities = torch.logspace(-2, 0, 8), torch.tensor([0.0, 0.5, 0.8, 0.9, 0.95])
lr, q = (v.reshape(-1) for v in torch.meshgrid(rates, sparsities, indexing="ij"))
generator = torch.Generator().manual_seed(0)
x = torch.randn(100, 40, generator=generator)
y = x @ torch.randn(40, generator=generator)


def loss(w):
    return (x @ w - y).square().mean()


tx = chain(top_q(0.0, param_ndim=None), sgd(0.1))


def step(w, state, own):
    return tx.step(w, grad(loss)(w), state, hyperparams=own)


# %%
# The state is stacked as the weights are; every hyperparameter is a tensor of forty values.
w = torch.zeros(40, 40)
state = vmap(tx.init)(w)
for _ in range(60):
    w, state = vmap(step)(w, state, {"lr": lr, "q": q})

shown = figure(figsize=(6, 3.4), layout="constrained")
ax = shown.subplots()
for i, value in enumerate(sparsities):
    ax.loglog(rates, vmap(loss)(w).view(8, 5)[:, i].clamp(max=1e3), "o-", label=f"q = {value:.2f}")
ax.set_xlabel("learning rate")
ax.set_ylabel("loss after 60 steps")
_ = ax.legend()
