"""One pipeline in its three homes: a pure loop, a torch optimizer, and TorchOpt."""

import torch
import torchopt

from rai_chain import box, chain, clamp, scale, top_q
from rai_chain.optim import ChainedParamTransformingOptimizer

# Keep the larger half of each row of the gradient, bound it, descend, and stay in a box.
tx = chain(top_q(q=0.5), clamp(clamp_min=-2.0, clamp_max=2.0), scale(-0.1), box(0.0, 1.0))
print(tx)

torch.manual_seed(0)
start, target = torch.rand(4, 6), 2 * torch.randn(4, 6)


def loss(x):
    return ((x - target) ** 2).sum()


# Home 1, the pure loop: nothing is written, so it may go under vmap, grad and compile.
pure, state = start, tx.init(start)
for _ in range(50):
    pure, state = tx.step(pure, torch.func.grad(loss)(pure), state)

# Home 2, a torch.optim.Optimizer: SGD that adds, with lr = 1, what the pipeline returns.
x = start.clone().requires_grad_()
optim = ChainedParamTransformingOptimizer(tx, params=[x], lr=1.0, maximize=True)
for _ in range(50):
    optim.zero_grad()
    loss(x).backward()
    optim.step()

# Home 3, TorchOpt, which wants parameters in a tuple and adds updates itself.
func_optim = torchopt.FuncOptimizer(torchopt.chain(tx))
params = (start.clone().requires_grad_(),)
for _ in range(50):
    params = func_optim.step(loss(*params), params)

results = {"optimizer": x.detach() - pure, "TorchOpt": params[0].detach() - pure}
for home, difference in results.items():
    print(f"{home} and pure loop differ by at most {difference.abs().max():g}")
assert torch.equal(x, pure) and torch.allclose(params[0], pure)
