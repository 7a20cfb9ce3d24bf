"""CA for teachers that take their guidance as an input, such as FLUX.1-dev: no empty prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewstep.core.schedules import Law, UpToAnchor
from fewstep.objectives.base import Positive, Pull
from fewstep.objectives.directions import GuidanceDifference
from fewstep.objectives.sites import AtAnchor, Site


class CAEmbedded(Pull):
    """CA whose guidance direction is a difference between two guidance scales, Eq. 26.

    With the defaults it adds what the teacher at guidance 8 adds to itself at guidance 1.

    Attributes:
        alpha: Strength of the guidance.
        low: Guidance of the one question, in the model's own scale.
        high: Guidance of the other.
    """

    name: Literal["ca_embedded"] = "ca_embedded"
    site: Site = AtAnchor()
    probe: Law = UpToAnchor()
    alpha: Positive = 7.0
    low: Annotated[float, Field(ge=0)] = 1.0
    high: Positive = 8.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    @property
    def misfits(self) -> Mapping[str, str]:
        """It asks for two guidance scales."""
        return {"cfg": "its network takes no guidance; use ca"}

    @property
    def direction(self) -> GuidanceDifference:
        """Where more guidance pulls, Eq. 26."""
        return GuidanceDifference(self.alpha, self.low, self.high)
