"""Criteria: what a recipe wants a run to reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.config.criteria import BoundRecipe, CriterionRecipe


@dataclass(frozen=True)
class Criterion:
    """One demand and how it came out.

    Attributes:
        name: Short and stable, for summary.json.
        label: The same for people.
        value: What was measured; None if it was not.
        bound: What it is compared with; None if that was not measured.
        at_most: Whether smaller is better.
    """

    name: str
    label: str
    value: float | None
    bound: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure is on the right side; None where it cannot be told."""
        if self.value is None or self.bound is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def row(self) -> dict[str, Any]:
        """What summary.json holds of it."""
        return {
            "name": self.name,
            "label": self.label,
            "value": self.value,
            "relation": "<=" if self.at_most else ">=",
            "bound": self.bound,
            "met": self.met,
        }


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
    figures = {**(run or {}), **_flat(evaluation)}
    return [_criterion(recipe, figures) for recipe in recipes]


def all_met(criteria: Iterable[Criterion]) -> bool | None:
    """False if any criterion failed, True if all are met, None where that cannot be told."""
    outcomes = [criterion.met for criterion in criteria]
    if False in outcomes:
        return False
    return True if outcomes and None not in outcomes else None


def _flat(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Figures of all configurations and of real pictures as ``CONFIGURATION.FIGURE``."""
    rows = {row["name"]: row for row in evaluation["configurations"]}
    if evaluation.get("real"):
        rows["real"] = evaluation["real"]
    costs = ("evaluations", "seconds_per_image")
    return {
        f"{name}.{figure}": value
        for name, row in rows.items()
        for figure, value in {**{k: row[k] for k in costs if k in row}, **row["figures"]}.items()
    }


def _criterion(recipe: CriterionRecipe, figures: Mapping[str, float | None]) -> Criterion:
    at_most = recipe.at_most is not None
    bound = recipe.at_most if recipe.at_most is not None else recipe.at_least
    if isinstance(bound, BoundRecipe):
        other = figures.get(bound.figure)
        bound = None if other is None else round(bound.times * other + bound.plus, 6)
    label = recipe.label or recipe.name.replace("_", " ")
    return Criterion(recipe.name, label, figures.get(recipe.figure), bound, at_most)
