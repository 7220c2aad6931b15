"""Perturbations of data and how they are solved for, with rai-toolbox's names and signatures."""

from .init import (
    uniform_like_l1_n_ball_,
    uniform_like_l2_n_ball_,
    uniform_like_linf_n_ball_,
)
from .models import AdditivePerturbation, PerturbationModel
from .solvers import gradient_ascent, random_restart

__all__ = [
    "AdditivePerturbation",
    "PerturbationModel",
    "gradient_ascent",
    "random_restart",
    "uniform_like_l1_n_ball_",
    "uniform_like_l2_n_ball_",
    "uniform_like_linf_n_ball_",
]
