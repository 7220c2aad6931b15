"""
Muon with AdamW
===============

Muon makes all singular values of a matrix's update about equal; AdamW does not. Matrices go to
Muon, everything else to AdamW.
"""

import torch
from matplotlib.pyplot import figure

from rai_chain import adamw, muon

generator = torch.Generator().manual_seed(0)
params = {"matrix": torch.zeros(32, 24), "bias": torch.zeros(24)}
spectrum = torch.logspace(0, -2, 24)
basis, _ = torch.linalg.qr(torch.randn(32, 24, generator=generator))
grads = {"matrix": basis * spectrum, "bias": torch.ones(24)}

# %%
# One step of each, and the singular values of what it adds to the matrix.
shown = figure(figsize=(6, 3.2), layout="constrained")
ax = shown.subplots()
for name, tx in {"muon": muon(0.1, weight_decay=0.0), "adamw": adamw(0.1)}.items():
    updates, _ = tx.update(grads, tx.init(params), params=params)
    values = torch.linalg.svdvals(updates["matrix"])
    ax.semilogy(values / values[0], "o-", label=f"the update of {name}")
ax.semilogy(spectrum, "k--", label="the gradient")
ax.set_xlabel("place")
ax.set_ylabel("singular value / largest")
_ = ax.legend()
