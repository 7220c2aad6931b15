"""The gradient links."""

from .links.averages import *
from .links.clipping import *
from .links.compression import *
from .links.noise import *
from .links.transforms import *
