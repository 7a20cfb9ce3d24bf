"""How a recipe writes a term's weight, which may change in the course of a run, Eq. 24."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

Points: TypeAlias = tuple[tuple[int, float], ...]
"""(step, weight), the steps rising; the first iteration is step 1."""


def _written(value: Any) -> Any:
    """A number is a weight that stays; lists, as YAML has them, are tuples."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ((0, value),)
    if isinstance(value, list | tuple):
        return tuple(tuple(point) if isinstance(point, list) else point for point in value)
    raise ValueError(f"must be a number or a list of [step, weight], not {value!r}")


def _sound(points: Points) -> Points:
    """The same points, if they make a weight."""
    if any(before >= after for (before, _), (after, _) in pairwise(points)):
        raise ValueError("the steps of [step, weight] must rise")
    if not any(weight for _, weight in points):
        raise ValueError("is 0 throughout: remove the objective instead")
    return points


Weight: TypeAlias = Annotated[
    tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)]], ...],
    Field(min_length=1),
    BeforeValidator(_written),
    AfterValidator(_sound),
]
"""In a recipe a number, or points such as ``[[100, 1.0], [200, 0.25]]``: linear between them, and
constant before the first and after the last."""
