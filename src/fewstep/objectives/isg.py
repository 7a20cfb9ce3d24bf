"""ISG, intra-segment guidance: one jump of the student should land where two finer ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewstep.core.flow import euler_step
from fewstep.core.types import Term, per_sample
from fewstep.objectives.base import Answer, Objective
from fewstep.objectives.questions import Question, Reply
from fewstep.objectives.sites import AtAnchor

_NO_EXTRA = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_NO_EXTRA)
class Squared:
    """Mean square of the gap, Eq. 29a: the paper's choice."""

    name: Literal["l2"] = field(default="l2", repr=False)

    def __call__(self, gap: Tensor) -> Tensor:
        """Per sample: [B, ...] -> [B]."""
        return per_sample(gap.square())


@dataclass(frozen=True, config=_NO_EXTRA)
class Charbonnier:
    """Smoothed mean absolute gap, Eq. 29b: the choice of the authors' code; 0 for no gap.

    Attributes:
        eps: Where the square turns into the absolute value.
    """

    eps: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1e-3
    name: Literal["charbonnier"] = field(default="charbonnier", repr=False)

    def __call__(self, gap: Tensor) -> Tensor:
        """Per sample: [B, ...] -> [B]."""
        return per_sample((gap.square() + self.eps**2).sqrt() - self.eps)


Distance: TypeAlias = Annotated[Squared | Charbonnier, Field(discriminator="name")]
"""Either; in a recipe a mapping such as ``{name: charbonnier, eps: 0.001}``."""


class ISG(Objective):
    """The student's jump to the next grid point, pulled to a target inside the segment, Eq. 28-29.

    SenseFlow, arXiv 2506.00523. The teacher goes from the anchor to a random point of the segment,
    the student, without gradient, from there to the segment's end: that is the target. Costs one
    evaluation of the teacher and one of the student besides the site's, which others may share.

    Attributes:
        site: The anchor, where the segment begins.
        distance: How the gap to the target is measured.
    """

    name: Literal["isg"] = "isg"
    site: AtAnchor = AtAnchor()
    distance: Distance = Squared()

    def questions(self, answer: Answer) -> Sequence[Question]:
        """One to the teacher, at the anchor."""
        return [Question("teacher", answer.anchor.xt, answer.anchor.sigma, answer.cond)]

    def term(self, answer: Answer, replies: Sequence[Reply]) -> Term:
        """The gap between jump and target as a weighted, reportable term."""
        anchor, cond, draws = answer.anchor, answer.cond, answer.draws
        start, end = anchor.sigma, anchor.sigma_next
        mid = torch.lerp(start, end, draws.uniform(f"{self.name}/mid", answer.indices))
        with torch.no_grad():
            xt_mid = euler_step(anchor.xt, replies[0].velocity, start, mid)
            target = euler_step(xt_mid, answer.ask.student(xt_mid, mid, cond), mid, end)
        gap = target - euler_step(anchor.xt, answer.velocity, start, end)
        return Term(
            name=self.name,
            loss=self.weight_at(draws.step) * self.distance(gap),
            norm=per_sample(gap.detach().abs()),
            direction=gap.detach(),
            x0=answer.x0.detach(),
        )
