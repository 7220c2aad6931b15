"""Schedules: hyperparameters as functions of the step."""

from .links.cycles import *
from .links.schedules import *
