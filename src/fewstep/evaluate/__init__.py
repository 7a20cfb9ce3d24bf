"""How good a run is: scores (one file each), arms, bars and the summary."""

from __future__ import annotations

from fewstep.evaluate.bar import Bar, bars
from fewstep.evaluate.base import available
from fewstep.evaluate.preview import preview_score
from fewstep.evaluate.runner import evaluate_run
from fewstep.evaluate.summary import summarize

__all__ = ["Bar", "available", "bars", "evaluate_run", "preview_score", "summarize"]
