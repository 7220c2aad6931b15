"""
Hypergradients
==============

A learning rate and a momentum, learned by differentiating through twenty steps of training.
"""

import torch
from matplotlib.pyplot import figure
from torch.func import grad_and_value

from rai_chain import sgd

curvature = torch.tensor([1.0, 0.1])


def after_training(lr, momentum):
    tx, w = sgd(lr, momentum=momentum), torch.ones(2)
    state = tx.init(w)
    for _ in range(20):
        w, state = tx.step(w, curvature * w, state)
    return (curvature * w**2).sum() / 2


# %%
# Both hyperparameters descend along the logarithm of what is left of the loss.
lr, momentum, seen = torch.tensor(0.1), torch.tensor(0.1), []
learn = grad_and_value(lambda *values: after_training(*values).log(), argnums=(0, 1))
for _ in range(60):
    (d_lr, d_momentum), value = learn(lr, momentum)
    seen.append((float(value.exp()), float(lr), float(momentum)))
    lr, momentum = lr - 0.02 * d_lr.clamp(-1, 1), (momentum - 0.01 * d_momentum).clamp(0, 0.95)

shown = figure(figsize=(8, 3), layout="constrained")
left, right = shown.subplots(1, 2)
left.semilogy([s[0] for s in seen])
left.set_title("loss after 20 steps")
right.plot([s[1] for s in seen], label="learning rate")
right.plot([s[2] for s in seen], label="momentum")
right.legend()
for ax in (left, right):
    ax.set_xlabel("hyperparameter steps")
