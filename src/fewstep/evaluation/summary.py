"""summary.json: figures, hardware, seconds and, if the recipe has criteria, how they came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.config.criteria import BoundRecipe, CriterionRecipe
from fewstep.inference.runs import RunFolder
from fewstep.utils import hardware
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, write_json


@dataclass(frozen=True)
class Criterion:
    """One demand and how it came out, as summary.json holds it.

    Attributes:
        name: Short and stable.
        label: The same for people.
        value: What was measured; None if it was not.
        relation: How the value should compare with the bound, `<=` or `>=`.
        bound: A number; None if it is another figure that was not measured.
        met: Whether the value is on the right side; None where it cannot be told.
    """

    name: str
    label: str
    value: float | None
    relation: str
    bound: float | None
    met: bool | None


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
    criteria = judge(run.recipe.criteria, evaluation, {"minutes": minutes, "memory_gb": peak})
    summary = {
        "criteria_met": all_met(criteria),
        "criteria": list(map(asdict, criteria)),
        "seconds": seconds,
        "peak_memory_gb": peak,
        "student": {"which": evaluation["which"], "step": evaluation["step"]},
        "configurations": {row["name"]: figures_of(row) for row in evaluation["configurations"]},
        "real": (evaluation.get("real") or {}).get("figures"),
        "hardware": hardware.describe(),
    }
    write_json(run.folder / "summary.json", summary)
    return summary


def judge(
    recipes: Sequence[CriterionRecipe],
    evaluation: Mapping[str, Any],
    run: Mapping[str, float | None] | None = None,
) -> list[Criterion]:
    """The recipe's criteria, held against an evaluation.

    Args:
        recipes: What is wanted.
        evaluation: What evaluation.json holds.
        run: Figures of the whole run: ``minutes`` and ``memory_gb``.
    """
    rows = {row["name"]: row for row in evaluation["configurations"]}
    if evaluation.get("real"):
        rows["real"] = evaluation["real"]
    figures = dict(run or {})
    for name, row in rows.items():
        figures |= {f"{name}.{figure}": value for figure, value in figures_of(row).items()}
    return [_criterion(recipe, figures) for recipe in recipes]


def all_met(criteria: Iterable[Criterion]) -> bool | None:
    """False if any criterion failed, True if all are met, None where that cannot be told."""
    outcomes = [criterion.met for criterion in criteria]
    if False in outcomes:
        return False
    return True if outcomes and None not in outcomes else None


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one row of evaluation.json, what it cost included."""
    costs = ("evaluations", "seconds_per_image")
    return {name: row[name] for name in costs if name in row} | row["figures"]


def _criterion(recipe: CriterionRecipe, figures: Mapping[str, float | None]) -> Criterion:
    relation = ">=" if recipe.at_most is None else "<="
    bound = recipe.at_least if recipe.at_most is None else recipe.at_most
    if isinstance(bound, BoundRecipe):
        other = figures.get(bound.figure)
        bound = None if other is None else round(bound.times * other + bound.plus, 6)
    value, met = figures.get(recipe.figure), None
    if value is not None and bound is not None:
        met = value <= bound if relation == "<=" else value >= bound
    label = recipe.label or recipe.name.replace("_", " ")
    return Criterion(recipe.name, label, value, relation, bound, met)
