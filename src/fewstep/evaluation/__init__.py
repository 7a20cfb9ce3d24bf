"""How good a run is: metrics, references and features (open ends), criteria and the summary."""

from __future__ import annotations

from fewstep.evaluation.runner import evaluate_run, measure_teacher
from fewstep.evaluation.summary import Criterion, judge, summarize

__all__ = ["Criterion", "evaluate_run", "judge", "measure_teacher", "summarize"]
