"""
Constraints
===========

The same descent in four sets: the parameter link at the end of the chain keeps every step inside.
"""

import torch
from matplotlib.pyplot import figure

from rai_chain import box, chain, l1_ball, l2_ball, sgd, simplex

target = torch.tensor([1.3, 0.9])
sets = {
    "l1_ball(1)": l1_ball(1.0, param_ndim=None),
    "l2_ball(1)": l2_ball(1.0, param_ndim=None),
    "box(-1, 0.7)": box(-1.0, 0.7),
    "simplex()": simplex(param_ndim=None),
}

# %%
# Starts are on a circle; the cross is where the loss is least without a constraint.
angles = torch.linspace(0, 2 * torch.pi, 13)[:-1]
shown = figure(figsize=(10, 2.8), layout="constrained")
for ax, (name, inside) in zip(shown.subplots(1, 4), sets.items(), strict=True):
    tx = chain(sgd(0.1), inside)
    for angle in angles:
        w = 1.2 * torch.stack([angle.cos(), angle.sin()])
        state, path = tx.init(w), [w]
        for _ in range(40):
            w, state = tx.step(w, w - target, state)
            path.append(w)
        ax.plot(*torch.stack(path).T, "-", lw=1, color="#4477aa", alpha=0.6)
        ax.plot(*w, "o", color="#ee6677")
    ax.plot(*target, "kx")
    ax.set_title(name)
    ax.set_aspect("equal")
