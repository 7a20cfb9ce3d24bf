"""What DM and CDM share: the direction, and at which guidance the teacher is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from fewstep.objectives.base import Answer, Pull
from fewstep.objectives.directions import Ask, at_guidance
from fewstep.records import Conditioning, VelocityFn

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

    def networks(self, answer: Answer) -> Ask:
        """The networks, with the teacher at the drawn guidance, Eq. 27."""
        if self.teacher_guidance is None:
            return answer.ask
        u = answer.draws.uniform(f"{self.name}/guidance", answer.indices)
        return _TeacherAt(answer.ask, self.teacher_guidance(u))


@dataclass(frozen=True, eq=False)
class _TeacherAt:
    """The same networks, the teacher at a guidance of its own, [B]."""

    ask: Ask
    guidance: Tensor

    @property
    def student(self) -> VelocityFn:
        return self.ask.student

    @property
    def fake_teacher(self) -> VelocityFn:
        return self.ask.fake_teacher

    def teacher(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return self.ask.teacher(xt, sigma, at_guidance(cond, self.guidance))
