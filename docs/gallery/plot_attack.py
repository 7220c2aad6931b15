"""
Attacks in three norms
======================

The same loop with three pipelines, each within a ball of its own norm: what it changes of a digit.
"""

import torch
from sklearn.datasets import load_digits
from torch.func import grad
from torch.nn.functional import cross_entropy

from rai_chain import (
    box,
    chain,
    l1_ball,
    l2_ball,
    linf_ball,
    normalize,
    plot,
    scale,
    sgd,
    sign,
    top_q,
)

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

# %%
# One of them, drawn: what each link sees.
attacks["L1"]

# %%
# The digit, and what each attack makes of it.
found = {"none": x}
for name, tx in attacks.items():
    new, state = x, tx.init(x)
    for _ in range(20):
        new, state = tx.step(new, grad(loss, 1)(w, new, y), state)
    found[name] = new
images = torch.cat(list(found.values())).view(-1, 8, 8)
figure = plot.images(
    {"image": images, "change": images - images[0]},
    titles=[f"{name}: a {int((new @ w).argmax())}" for name, new in found.items()],
)
