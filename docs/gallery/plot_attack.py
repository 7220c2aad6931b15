"""
Attacks in three norms
======================

The same loop with three pipelines, each within a ball of its own norm: what it changes of a digit.
"""

import torch
from matplotlib.pyplot import figure
from sklearn.datasets import load_digits
from torch.func import grad
from torch.nn.functional import cross_entropy

from rai_chain import box, chain, l1_ball, l2_ball, linf_ball, normalize, scale, sgd, sign, top_q

digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)


# %%
# A linear classifier, trained by a pure loop.
def loss(w, x, y):
    return cross_entropy(x @ w, y)


w, tx = torch.zeros(64, 10), sgd(lr=0.5, momentum=0.9)
state = tx.init(w)
for _ in range(200):
    w, state = tx.step(w, grad(loss)(w, images, labels), state)

# %%
# Each attack climbs the loss: normalise, step, and back into the ball and the box of pixels.
x, y = images[:1], labels[:1]
attacks = {
    "L1": chain(top_q(0.9), sign(), normalize(1), scale(0.5), l1_ball(3.0, x), box(0.0, 1.0)),
    "L2": chain(normalize(2), scale(0.2), l2_ball(1.2, x), box(0.0, 1.0)),
    "L-infinity": chain(sign(), scale(0.03), linf_ball(0.15, x), box(0.0, 1.0)),
}
shown = figure(figsize=(9, 2.6), layout="constrained")
axes = shown.subplots(1, 4)
axes[0].imshow(x.view(8, 8), cmap="gray_r", vmin=0, vmax=1)
axes[0].set_title(f"a digit {int(y)}")
for ax, (name, tx) in zip(axes[1:], attacks.items(), strict=True):
    new, state = x, tx.init(x)
    for _ in range(20):
        new, state = tx.step(new, grad(loss, 1)(w, new, y), state)
    ax.imshow((new - x).view(8, 8), cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_title(f"{name}: now a {int((new @ w).argmax())}")
for ax in axes:
    ax.axis("off")
