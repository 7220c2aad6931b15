"""Attacks in a line: images near the given ones that a model gets wrong.

Each is a pipeline in `rai_chain.solve`: a direction, a step, and the ball and the interval that
every point is projected to. An attack of another kind is another pipeline in `attack`.
"""

from .climb import attack
from .near import apgd, fgsm, frank_wolfe, mi_fgsm, pgd, slide
from .whole import adversarial_step, universal

__all__ = [
    "adversarial_step",
    "apgd",
    "attack",
    "fgsm",
    "frank_wolfe",
    "mi_fgsm",
    "pgd",
    "slide",
    "universal",
]
