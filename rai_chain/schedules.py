"""Schedules: hyperparameters as functions of the step."""

from .links.schedules import *
