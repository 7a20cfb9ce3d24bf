"""The criteria section of a recipe: what a run has to reach, for recipes that are a benchmark."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from fewstep.config.strict import Section


class BoundRecipe(Section):
    """A bound that is another figure's value, ``times * figure + plus``.

    Attributes:
        figure: As in `CriterionRecipe`.
    """

    figure: str
    times: float = 1.0
    plus: float = 0.0


class CriterionRecipe(Section):
    """One demand on a run: a figure, and a bound that is a number or made of another figure.

    Attributes:
        name: Short and stable, for summary.json.
        label: The same for people; None is the name.
        figure: ``CONFIGURATION.FIGURE``, such as ``student@4.frechet_teacher`` or
            ``real.diversity``; or a figure of the whole run: ``minutes`` or ``memory_gb``.
        at_least: Smallest value that meets it.
        at_most: Largest value that meets it.
    """

    name: str
    label: str | None = None
    figure: str
    at_least: float | BoundRecipe | None = None
    at_most: float | BoundRecipe | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give one of at_least and at_most")
        return self
