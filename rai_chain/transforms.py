"""The gradient links."""

from .links.transforms import *
