"""Training: `distill` turns a recipe into a run folder."""

from __future__ import annotations

from fewstep.train.interrupt import Stopped
from fewstep.train.loop import distill
from fewstep.train.updater import NonFiniteError

__all__ = ["NonFiniteError", "Stopped", "distill"]
