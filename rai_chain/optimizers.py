"""Optimizers as chains of small stateful links."""

from .links.optimizers import *
