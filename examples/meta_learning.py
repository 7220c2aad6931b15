"""Learn the hyperparameters of each link by differentiating through the pipeline.

A linear model is fitted to a stream of small batches, a fifth of which are spoilt by outliers, in
steps of ``chain(clamp, scale)``. How hard should the gradient be clamped, and how far should the
weight and the bias move? Each answer is a tensor handed to `tx.step`, and the loss on clean data,
averaged over many such tasks with `vmap`, is differentiated through all steps to improve it.

Option: --quick, for fewer meta-steps.
"""

import sys

import torch
import torchopt
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.functional import mse_loss

from rai_chain import chain, clamp, from_torch, scale

STEPS, BATCH, FEATURES, TASKS = 20, 8, 8, 128
META_STEPS = 10 if "--quick" in sys.argv else 100

torch.manual_seed(0)
model = nn.Linear(FEATURES, 1)
start = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
tx = chain(clamp(clamp_min=-10.0, clamp_max=10.0), scale(-0.01))


def loss(params, x, y):
    return mse_loss(functional_call(model, params, x), y)


def make_tasks(count):
    """Training streams x (count, STEPS, BATCH, FEATURES), y (..., 1), and clean x, y likewise."""
    x = torch.randn(2, count, STEPS, BATCH, FEATURES)
    weight, bias = torch.randn(count, 1, FEATURES, 1), 3 * torch.randn(count, 1, 1, 1)
    clean = x @ weight + bias
    spoilt = torch.rand(count, STEPS, 1, 1) < 0.2
    noise = 30 * torch.randn(count, STEPS, BATCH, 1)
    return x[0], clean[0] + spoilt * noise, x[1], clean[1]


def hyperparams(logs):
    """What `tx.step` takes: a bound for all leaves, and a step size for each."""
    bound = logs["clamp"].exp()
    rates = {name: -logs[name].exp() for name in start}
    return {"clamp_min": -bound, "clamp_max": bound, "grad_scale": rates}


def clean_loss(logs, x, y, clean_x, clean_y):
    """The loss on clean data after one pass over the stream."""
    params, state = start, tx.init(start)
    for batch in zip(x, y, strict=True):
        grads = grad(loss)(params, *batch)
        params, state = tx.step(params, grads, state, hyperparams=hyperparams(logs))
    return loss(params, clean_x, clean_y)


def mean_loss(logs, tasks):
    return vmap(clean_loss, in_dims=(None, 0, 0, 0, 0))(logs, *tasks).mean()


tasks, new_tasks = make_tasks(TASKS), make_tasks(TASKS)
logs = {"clamp": 10.0, "weight": 0.01, "bias": 0.01}
logs = {name: torch.tensor(value).log() for name, value in logs.items()}
before = mean_loss(logs, new_tasks).item()
meta_tx = from_torch(torch.optim.Adam, lr=0.1)
meta_state, losses = meta_tx.init(logs), []

print(f"{tx}\n\nmeta-step  clean loss  clamp_max  weight step  bias step")
for i in range(META_STEPS):
    meta_grads, value = grad_and_value(mean_loss)(logs, tasks)
    losses.append(value.item())
    if i % (META_STEPS // 10) == 0:
        bound, weight, bias = (log.exp() for log in logs.values())
        print(f"{i:9}  {value:10.3f}  {bound:9.3f}  {weight:11.4f}  {bias:9.4f}")
    logs, meta_state = meta_tx.step(logs, meta_grads, meta_state)
after = mean_loss(logs, new_tasks).item()
print(f"\nclean loss on new tasks: {before:.3f} before, {after:.3f} after")

# TorchOpt's MetaOptimizer takes a pipeline too: it moves a module's parameters and keeps the graph.
task = [part[0] for part in tasks]
expected = grad(clean_loss)(logs, *task)
leaves = {name: log.clone().requires_grad_() for name, log in logs.items()}
chosen = hyperparams(leaves)
rates = tuple(chosen["grad_scale"][name] for name in sorted(start))  # TorchOpt's order of leaves
meta_tx = chain(clamp(chosen["clamp_min"], chosen["clamp_max"]), scale(rates))

model.load_state_dict(start)
meta_optim = torchopt.MetaOptimizer(model, meta_tx)
x, y, clean_x, clean_y = task
for batch_x, batch_y in zip(x, y, strict=True):
    meta_optim.step(mse_loss(model(batch_x), batch_y))
mse_loss(model(clean_x), clean_y).backward()
print("\nmeta-gradient   torch.func   MetaOptimizer")
for name, leaf in leaves.items():
    print(f"{name:13} {expected[name]:12.6f} {leaf.grad:15.6f}")
    torch.testing.assert_close(leaf.grad, expected[name])
results = {"losses": losses, "before": before, "after": after}
