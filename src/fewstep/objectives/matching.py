"""What DM and CDM share: the direction, and at which guidance the teacher is asked for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from fewstep.objectives.base import Answer, Pull
from fewstep.objectives.directions import at_guidance
from fewstep.objectives.questions import Question

Scale = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Scales:
    """Guidance g ~ U(low, high) in the model's own scale, one per sample, Eq. 27."""

    low: Scale = 1.0
    high: Scale = 8.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def __call__(self, u: Tensor) -> Tensor:
        """Guidance from a uniform draw ``u`` in (0, 1): [B] -> [B]."""
        return self.low + (self.high - self.low) * u


class Matching(Pull):
    """A pull from the fake teacher to the teacher, Eq. 23, or 27 where the guidance is drawn.

    Attributes:
        teacher_guidance: The teacher alone is asked at a guidance drawn from this range; None: all
            networks at the one the prompts are encoded with. Only for models that take one.
    """

    teacher_guidance: Scales | None = None

    @property
    def misfits(self) -> Mapping[str, str]:
        """A drawn guidance needs a network that takes one."""
        if self.teacher_guidance is None:
            return {}
        return {"cfg": "its network takes no guidance; remove teacher_guidance"}

    def questions(self, answer: Answer) -> Sequence[Question]:
        """As of any pull, the teacher's at the drawn guidance, Eq. 27."""
        asked = super().questions(answer)
        if self.teacher_guidance is None:
            return asked
        u = answer.draws.uniform(f"{self.name}/guidance", answer.indices)
        cond = at_guidance(answer.cond, self.teacher_guidance(u))
        return [replace(each, cond=cond) if each.teacher == "teacher" else each for each in asked]
