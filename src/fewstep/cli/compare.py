"""Figures of several runs side by side, read from their summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json

Figure = float | bool | None


def figures(runs: Sequence[Path]) -> dict[str, list[Figure]]:
    """Every figure of every run, by dotted name; None where a run lacks it.

    Args:
        runs: Two or more run folders that were evaluated.

    Returns:
        Name -> one value per run, in the order of the runs.

    Raises:
        FewstepError: Fewer than two runs, or one that holds no summary.
    """
    if len(runs) < 2:
        raise FewstepError("compare: one run only; name two or more", code="missing-input")
    tables = [flat(_summary(run)) for run in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return {name: [table.get(name) for table in tables] for name in names}


def flat(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """A summary's figures without nesting: ``student@4.frechet_teacher`` -> value."""
    names = ("criteria_met", "seconds", "peak_memory_gb")
    found: dict[str, Figure] = {name: summary.get(name) for name in names}
    for configuration, values in summary["configurations"].items():
        found |= {f"{configuration}.{name}": value for name, value in values.items()}
    return found


def _summary(run: Path) -> Mapping[str, Any]:
    summary = read_json(run / "summary.json")
    if not isinstance(summary, dict) or "configurations" not in summary:
        raise FewstepError(
            f"{run}: no summary.json; run `fewstep evaluate {run}` first", code="missing-input"
        )
    return summary
