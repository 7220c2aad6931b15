"""Optimizers as chains of small stateful links, and the links."""

from .links.adam import *
from .links.adaptive import *
from .links.descent import *
from .links.layerwise import *
from .links.matrices import *
from .links.moments import *
from .links.momentum import *
from .links.optimizers import *
