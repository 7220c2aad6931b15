"""
Freezing and fine-tuning
========================

Each part of a network has a pipeline of its own: the first layer is frozen, the second goes slowly.
"""

import torch
from matplotlib.pyplot import figure
from torch import nn

from rai_chain import adam, partition, set_to_zero

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
tx = partition(
    {"frozen": set_to_zero(), "slow": adam(1e-3), "fast": adam(1e-2)},
    lambda path: {"0": "frozen", "2": "slow", "4": "fast"}[path.split(".")[0]],
)
optimizer = tx.optimizer(net.named_parameters())
x = torch.randn(64, 8)
y = x.sin().sum(1, keepdim=True)

# %%
# How far each layer has moved from where it began.
start = {name: p.detach().clone() for name, p in net.named_parameters() if "weight" in name}
moved = {name: [] for name in start}
for _ in range(100):
    optimizer.zero_grad()
    (net(x) - y).square().mean().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        if name in start:
            moved[name].append(float((p.detach() - start[name]).norm()))

shown = figure(figsize=(6, 3.2), layout="constrained")
ax = shown.subplots()
for (name, distances), kind in zip(moved.items(), ["frozen", "slow", "fast"], strict=True):
    ax.plot(distances, label=f"{name}: {kind}")
ax.set_xlabel("step")
ax.set_ylabel("distance from the start")
_ = ax.legend()
