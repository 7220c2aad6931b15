"""
Compression with and without error feedback
===========================================

Only a twentieth of each gradient is used. What is left out is lost, or remembered.
"""

import torch
from matplotlib.pyplot import figure

from rai_chain import chain, ef_sign, error_feedback, sgd, top_q

generator = torch.Generator().manual_seed(0)
x = torch.randn(300, 100, generator=generator) * torch.linspace(0.1, 1.5, 100)
y = x @ torch.randn(100, generator=generator)
sparse = top_q(0.95, param_ndim=None)
pipelines = {
    "all of the gradient": sgd(0.1),
    "the largest 5%": chain(sparse, sgd(0.1)),
    "the largest 5%, error feedback": chain(error_feedback(sparse), sgd(0.1)),
    "signs, error feedback": chain(error_feedback(ef_sign(param_ndim=None)), sgd(0.1)),
}

# %%
# The batches are noisy, so that what is left out matters.
shown = figure(figsize=(6.5, 3.4), layout="constrained")
ax = shown.subplots()
for name, tx in pipelines.items():
    w = torch.zeros(100)
    state, losses = tx.init(w), []
    for t in range(400):
        batch = slice(20 * (t % 15), 20 * (t % 15) + 20)
        error = x[batch] @ w - y[batch]
        w, state = tx.step(w, x[batch].T @ error / 20, state)
        losses.append(float((x @ w - y).square().mean()))
    ax.semilogy(losses, label=name)
ax.set_xlabel("step")
ax.set_ylabel("loss")
_ = ax.legend()
