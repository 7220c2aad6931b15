"""Random numbers that are a pure function of a key, which a link asks for by the name `key`."""

from .data.random import bernoulli, normal, uniform

__all__ = ["bernoulli", "normal", "uniform"]
