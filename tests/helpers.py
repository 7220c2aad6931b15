"""What the tests of several folders share: parameters, steps and comparisons."""

import copy

import torch
from torch.utils._pytree import tree_map


def values(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def leaf(*shape, seed=0, dtype=torch.float32):
    """A parameter with random values."""
    return values(*shape, seed=seed, dtype=dtype).requires_grad_()


def leaves(count, *shape):
    """Parameters of one shape that start at 0."""
    return [torch.zeros(shape).requires_grad_() for _ in range(count)]


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def give(params, grads):
    """Set gradients: tensors, numbers that fill one, or None."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.as_tensor(g, dtype=p.dtype).expand(p.shape).clone()


def step(optimizer, *grads):
    """One step with these gradients, one for each parameter in the order of the groups."""
    give(parameters(optimizer), grads)
    optimizer.step()


def steps(optimizer, count=3, start=0):
    """Steps with random gradients; the parameters then."""
    for time in range(start, start + count):
        params = parameters(optimizer)
        seeds = range(1000 + 100 * time, 1000 + 100 * time + len(params))
        step(optimizer, *[values(*p.shape, seed=s) for p, s in zip(params, seeds, strict=True)])
    return [p.detach().clone() for p in parameters(optimizer)]


def identical(a, b):
    """Whether two nests have the same types, structure and bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.layout == b.layout
        return same and torch.equal(a.to_dense().nan_to_num(9e9), b.to_dense().nan_to_num(9e9))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        alike = type(a) is type(b) and len(a) == len(b)
        return alike and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a is b or a == b)


def snapshot(optimizer):
    """Everything that a refused call must leave as it was."""
    tensors = [(p.detach(), p.grad) for p in parameters(optimizer)]
    return copy.deepcopy((tensors, dict(optimizer.defaults), optimizer.state_dict()))


def tensors_in(nest):
    """All tensors of a nest of dicts and lists; anything else that holds others is refused."""
    if isinstance(nest, torch.Tensor):
        return [nest]
    if isinstance(nest, dict):
        return [t for value in nest.values() for t in tensors_in(value)]
    if isinstance(nest, list):
        return [t for value in nest for t in tensors_in(value)]
    numbers = isinstance(nest, tuple) and all(isinstance(one, (int, float)) for one in nest)
    assert numbers or not isinstance(nest, (tuple, set)), nest  # as torch's betas are
    return []


def given(tx):
    """What a pipeline asks for in a pure call besides gradients: the loss, a gradient function."""
    needs = set().union(*(link.needs for link in tx.links))
    have = {"value": 0.7, "grad_fn": slope}
    return {name: have[name] for name in needs & set(have)}


def slope(params):
    return tree_map(lambda x: None if x is None else 0.3 * x + 0.1, params)
