"""The gradient links."""

from .links.averages import *
from .links.transforms import *
