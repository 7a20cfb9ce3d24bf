"""How good a run is: scores (one file each), configurations, criteria and the summary."""

from __future__ import annotations

from fewstep.evaluation.criteria import Criterion, criteria
from fewstep.evaluation.metrics.base import available
from fewstep.evaluation.preview_scores import preview_score
from fewstep.evaluation.runner import evaluate_run
from fewstep.evaluation.summary import summarize

__all__ = ["Criterion", "available", "criteria", "evaluate_run", "preview_score", "summarize"]
