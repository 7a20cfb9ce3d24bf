"""summary.json: figures, hardware, seconds and, if the recipe has criteria, how they came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.evaluation.criteria import all_met, judge
from fewstep.inference.runs import RunFolder
from fewstep.utils import hardware
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, write_json


def summarize(
    run_folder: str | Path, *, seconds: float | None = None, peak_memory_gb: float | None = None
) -> dict[str, Any]:
    """Writes summary.json from the run's evaluation.json and returns it.

    Args:
        run_folder: A run that was evaluated.
        seconds: Duration of the whole run; None keeps what an earlier summary says.
        peak_memory_gb: Its peak resident memory in 1e9 bytes; None likewise.

    Raises:
        FewstepError: The run was not evaluated.
    """
    run = RunFolder.open(run_folder)
    evaluation = read_json(run.folder / "evaluation.json")
    if evaluation is None:
        raise FewstepError(
            f"{run.folder}: not evaluated yet; run `fewstep evaluate {run.folder}` first",
            code="missing-input",
        )
    before = read_json(run.folder / "summary.json") or {}
    seconds = before.get("seconds") if seconds is None else round(seconds, 1)
    peak = before.get("peak_memory_gb") if peak_memory_gb is None else round(peak_memory_gb, 3)
    minutes = None if seconds is None else round(seconds / 60, 2)
    figures = {"minutes": minutes, "memory_gb": peak}
    criteria = judge(run.recipe.criteria, evaluation, figures)
    summary = {
        "criteria_met": all_met(criteria),
        "criteria": [criterion.row() for criterion in criteria],
        "seconds": seconds,
        "peak_memory_gb": peak,
        "student": {"which": evaluation["which"], "step": evaluation["step"]},
        "configurations": {row["name"]: _figures(row) for row in evaluation["configurations"]},
        "real": (evaluation.get("real") or {}).get("figures"),
        "hardware": hardware.describe(),
    }
    write_json(run.folder / "summary.json", summary)
    return summary


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    cost = {name: row[name] for name in ("evaluations", "seconds_per_image")}
    return cost | row["figures"]
