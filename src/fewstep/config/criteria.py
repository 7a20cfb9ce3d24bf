"""The criteria section of a recipe: what a run has to reach, for recipes that are a benchmark."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from fewstep.config.strict import Section


class BoundRecipe(Section):
    """A bound that is another figure's value, ``times * figure + plus``."""

    figure: str
    """As in a criterion."""
    times: float = 1.0
    """Factor to that figure."""
    plus: float = 0.0
    """Added afterwards."""


class CriterionRecipe(Section):
    """One demand on a run: a figure, and a bound that is a number or made of another figure."""

    name: str
    """Short and stable, for summary.json."""
    label: str | None = None
    """The same for people; null is the name."""
    figure: str
    """`CONFIGURATION.FIGURE`, such as `student@4.frechet_teacher` or `real.diversity`; or a figure
    of the whole run: `minutes` or `memory_gb`."""
    at_least: float | BoundRecipe | None = None
    """Smallest value that meets it."""
    at_most: float | BoundRecipe | None = None
    """Largest value that meets it; give one of the two bounds."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give one of at_least and at_most")
        return self
