"""Figures of several runs side by side, read from their summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ValidationError

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json

Figure: TypeAlias = float | bool | None


class _Summary(BaseModel):
    """As much of summary.json as is compared."""

    criteria_met: bool | None = None
    seconds: float | None = None
    peak_memory_gb: float | None = None
    configurations: dict[str, dict[str, Figure]]


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
    tables = list(map(_figures, runs))
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _figures(run: Path) -> dict[str, Figure]:
    """A run's figures without nesting: ``student@4.frechet_teacher`` -> value."""
    try:
        summary = _Summary.model_validate(read_json(run / "summary.json") or {})
    except ValidationError as error:
        raise FewstepError(
            f"{run}: no sound summary.json; run `fewstep evaluate {run}` first",
            code="missing-input",
        ) from error
    return {
        **summary.model_dump(exclude={"configurations"}),
        **{
            f"{configuration}.{name}": value
            for configuration, values in summary.configurations.items()
            for name, value in values.items()
        },
    }
