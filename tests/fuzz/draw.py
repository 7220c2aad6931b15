"""What a case is drawn from: shapes, dtypes, layouts, values and hyperparameters, by a seed."""

import inspect
import math
import random

import torch

import rai_chain as rc
from rai_chain.data.hyper import Flag, Range, Several

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LARGEST = dict(zip(DTYPES, (300, 37, 37, 4), strict=True))  # decimal exponents
LEAST = dict(zip(DTYPES, (-320, -44, -40, -7), strict=True))
FACTORIES = {n: getattr(rc, n) for n in rc.__all__ if hasattr(getattr(rc, n), "definition")}


class Draw(random.Random):
    """Choices of one case."""

    def pick(self, *options):
        return self.choice(options)

    def rarely(self, chance=0.1):
        return self.random() < chance

    def dtype(self):
        return self.choice(DTYPES)

    def shape(self):
        """Mostly small; sometimes long, empty or of no dimension."""
        if self.rarely(0.03):
            return self.pick((), (0,), (3, 0), (1,))
        if self.rarely(0.04):
            return self.pick((1, 5000), (2, 40_000), (3, 4097), (70_000,))
        return tuple(self.pick(1, 2, 3, 4, 5, 7, 8, 17, 33) for _ in range(self.pick(1, 2, 2, 3)))

    def exponent(self, dtype):
        """Mostly ordinary, sometimes anything that the dtype holds."""
        low, high = LEAST[dtype], LARGEST[dtype]
        return self.pick(0, 0, 0, -3, 2, self.randint(low, high), low, high)

    def values(self, shape, dtype, ordinary=False, special=False):
        """Normal values of one magnitude or of many, with ties, zeros and special floats."""
        generator = torch.Generator().manual_seed(self.getrandbits(40))
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.rarely(0.2):
            x = x.round()
        if not ordinary:
            x = x * 10.0 ** self.exponent(dtype)
            if self.rarely(0.15):
                spread = torch.randn(shape, generator=generator, dtype=torch.float64)
                x = x * torch.exp(6 * spread)
        most = torch.finfo(dtype).max
        x = x.clamp(-most, most).to(dtype).nan_to_num(0.0, most, -most)
        if self.rarely(0.1):
            x = torch.where(torch.rand(shape, generator=generator) < 0.7, 0.0, x).to(dtype)
        if special and x.numel() and self.rarely(0.15):
            place = self.randrange(x.numel())
            x.view(-1)[place] = self.pick(math.nan, math.inf, -math.inf, -0.0)
        return x

    def layout(self, x):
        """The same values in another place or order of memory."""
        how = self.pick("plain", "plain", "turned", "strided", "inside", "expanded")
        if how == "turned" and x.ndim > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if how == "strided" and x.ndim:
            return torch.stack([x, x + 1], -1)[..., 0]
        if how == "inside":
            return torch.cat([x.reshape(-1)[:1], x.reshape(-1)])[min(1, x.numel()) :].view(x.shape)
        if how == "expanded" and x.ndim > 1:
            return x[:1].clone().expand(x.shape)
        return x

    def param_ndim(self, x):
        return self.pick(-1, None, *range(1, x.ndim + 1), *((-2,) if x.ndim > 2 else ()))

    # -------------------------------------------------------------- any link of the library

    def number(self, rule, low=None):
        """A value that a rule admits."""
        if isinstance(rule, Flag):
            return self.choice(list(rule.choices))
        if isinstance(rule, Several):
            return tuple(self.number(rule.each) for _ in range(rule.count))
        low, high = rule.low if low is None else low, rule.high
        if rule.whole:
            low = max(0, int(low)) if math.isfinite(low) else 0
            return self.randint(low, low + 5)
        if math.isfinite(low) and math.isfinite(high):
            value = self.uniform(low, high)
        elif math.isfinite(high):
            value = high - self.expovariate(1.0)
        elif math.isfinite(low):
            value = low + self.expovariate(1.0)
        else:
            value = self.gauss(0.0, 1.0)
        return round(value, self.pick(1, 3, 9)) if not rule.open_high else value

    def link(self, name):
        """A link of this name, with values as numbers, tensors or schedules."""
        factory, given = FACTORIES[name], {}
        for key, parameter in inspect.signature(factory).parameters.items():
            rule = factory.definition.rules.get(key)
            needed = parameter.default is inspect.Parameter.empty
            if rule is None or not (needed or self.rarely(0.5)):
                continue
            value = self.number(rule)
            free = isinstance(rule, Range) and not rule.static and isinstance(value, float)
            if free and self.rarely(0.2):
                value = self.pick(torch.tensor(value), lambda step, v=value: v + 0 * step)
            given[key] = value
        if name in ("box", "clamp", "feasible"):
            bounds = sorted([self.gauss(0.0, 1.0), self.gauss(0.0, 1.0)])
            given = dict(zip(factory.definition.rules, bounds, strict=True))
            given.pop(self.pick("nothing", *given), None)
        if factory.definition.scope == "row":
            given["param_ndim"] = self.pick(-1, None, "tree")
        return factory(**given)
