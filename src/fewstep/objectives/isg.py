"""ISG, intra-segment guidance: one jump of the student should end where two finer jumps end."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewstep.core.flow import euler_step
from fewstep.core.types import Term, per_sample
from fewstep.objectives.base import Context, Objective
from fewstep.objectives.queries import Asking, Query
from fewstep.objectives.sites import AtAnchor

_NO_EXTRA = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, config=_NO_EXTRA)
class Squared:
    """Mean square of the gap, Eq. 29a, as in the paper."""

    name: Literal["l2"] = field(default="l2", repr=False)

    def __call__(self, gap: Tensor) -> Tensor:
        """Per sample: [B, ...] -> [B]."""
        return per_sample(gap.square())


@dataclass(frozen=True, config=_NO_EXTRA)
class Charbonnier:
    """Smoothed mean absolute gap, Eq. 29b, as in the authors' code; 0 for no gap."""

    eps: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1e-3
    """Gap at which the square turns into the absolute value, in latent units."""
    name: Literal["charbonnier"] = field(default="charbonnier", repr=False)

    def __call__(self, gap: Tensor) -> Tensor:
        """Per sample: [B, ...] -> [B]."""
        return per_sample((gap.square() + self.eps**2).sqrt() - self.eps)


Distance: TypeAlias = Annotated[Squared | Charbonnier, Field(discriminator="name")]
"""Either; in a recipe a mapping such as ``{name: charbonnier, eps: 0.001}``."""


class ISG(Objective):
    """The student's jump to the next grid point, pulled to a target inside the segment, Eq. 28-29.

    SenseFlow, arXiv 2506.00523. The target is where two finer jumps end: the teacher's from the
    anchor to a random point of the segment, then the student's, without gradient, to the segment's
    end. Costs one evaluation of the teacher and one of the student beside that at the site.
    """

    name: Literal["isg"] = "isg"
    site: AtAnchor = AtAnchor()
    """The anchor, where the segment begins."""
    distance: Distance = Squared()
    """How the gap to the target is measured, Eq. 29."""

    def term(self, at: Context) -> Asking[Term]:
        """The gap between the student's jump and the target, Eq. 28-29."""
        anchor, start, end = at.anchor, at.anchor.sigma, at.anchor.sigma_next
        mid = torch.lerp(start, end, at.draws.uniform(f"{self.name}/mid", at.indices))
        (teacher,) = yield [Query("teacher", anchor.xt, start, at.cond)]
        xt_mid = euler_step(anchor.xt, teacher.velocity, start, mid)
        (student,) = yield [Query("student", xt_mid, mid, at.cond)]
        target = euler_step(xt_mid, student.velocity, mid, end)
        gap = target - euler_step(anchor.xt, at.velocity, start, end)
        return Term(
            name=self.name,
            loss=self.distance(gap),
            norm=per_sample(gap.detach().abs()),
            direction=gap.detach(),
            x0=at.x0.detach(),
        )
