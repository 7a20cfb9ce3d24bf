"""Training: `distill` turns a recipe into a run folder."""

from __future__ import annotations

from fewstep.train.optim import DivergedError, NonFiniteError
from fewstep.train.signals import Stopped
from fewstep.train.trainer import distill

__all__ = ["DivergedError", "NonFiniteError", "Stopped", "distill"]
