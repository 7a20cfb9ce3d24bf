"""The three terms of CDM, arXiv 2605.06376, and CA for teachers that take guidance as an input.

All are pulls of the student's x0 and differ in three choices: the site where the student is
evaluated, the law of the probe where the teachers are queried, and the direction. Equation numbers
refer to ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewstep.core.schedules import Law, Uniform, UpToAnchor
from fewstep.core.types import Conditioning
from fewstep.objectives.base import Context, Positive, Pull
from fewstep.objectives.queries import Asking, Query
from fewstep.objectives.sites import AlongVelocity, AtAnchor, Site
from fewstep.utils.errors import FewstepError

_NO_EMPTY_PROMPT = "its guidance is an input, not an empty prompt; use ca_embedded"
_Scale = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class CA(Pull):
    """Guidance augmentation: what classifier-free guidance would add, built into the student.

    The student's x0 at the anchor is pulled along the teacher's guidance direction, Eq. 22, probed
    at s ~ U(0, sigma_i): guidance matters for what the anchor has not decided yet.
    """

    name: Literal["ca"] = "ca"
    site: Site = AtAnchor()
    probe: Law = UpToAnchor()
    alpha: Positive = 7.0
    """Strength of the guidance, in units of the teacher's own guidance difference; the stock
    pipeline's guidance scale is a good start."""

    @property
    def unsupported_guidance(self) -> Mapping[str, str]:
        """It needs the teacher's prediction for the empty prompt."""
        return {"embedded": _NO_EMPTY_PROMPT}

    def direction(self, xt: Tensor, sigma: Tensor, at: Context) -> Asking[tuple[Tensor, Tensor]]:
        """``alpha (x0_teacher(cond) - x0_teacher(null))``, Eq. 22; k compares with the former."""
        cond, null = yield [Query("teacher", xt, sigma, prompts) for prompts in (at.cond, at.null)]
        return self.alpha * (cond.x0 - null.x0), cond.x0


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class GuidanceRange:
    """Guidance scale g ~ U(low, high) in the model's own unit, one per sample, Eq. 27."""

    low: _Scale = 1.0
    """Lower end of the range."""
    high: _Scale = 8.0
    """Upper end of the range."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self

    def __call__(self, u: Tensor) -> Tensor:
        """Guidance scale from a uniform draw ``u`` in (0, 1): [B] -> [B]."""
        return self.low + (self.high - self.low) * u


class DM(Pull):
    """Distribution matching at the anchor, Eq. 23, or 27 where the guidance is drawn."""

    name: Literal["dm"] = "dm"
    site: Site = AtAnchor()
    probe: Law = Uniform()
    teacher_guidance: GuidanceRange | None = None
    """Range from which the guidance scale of the teacher's queries is drawn; null: that of the
    encoded prompts, as for the other networks. For models that take guidance as an input."""

    @property
    def unsupported_guidance(self) -> Mapping[str, str]:
        """A drawn guidance scale needs a network that takes one."""
        if self.teacher_guidance is None:
            return {}
        return {"cfg": "its network takes no guidance; remove teacher_guidance"}

    def direction(self, xt: Tensor, sigma: Tensor, at: Context) -> Asking[tuple[Tensor, Tensor]]:
        """``x0_teacher(cond) - x0_fake(cond)``, Eq. 23; k compares with the former."""
        teacher_cond = at.cond
        if self.teacher_guidance is not None:  # Eq. 27
            u = at.draws.uniform(f"{self.name}/guidance", at.indices)
            teacher_cond = with_guidance(at.cond, self.teacher_guidance(u))
        real, fake = yield [
            Query("teacher", xt, sigma, teacher_cond),
            Query("fake_teacher", xt, sigma, at.cond),
        ]
        return real.x0 - fake.x0, real.x0


class CDM(DM):
    """Continuous-time distribution matching: DM at points between the anchors, Eq. 20b and 23.

    The student is evaluated where its simulated velocity carries the anchor, so that it learns
    every sigma, not only those of a grid.
    """

    name: Literal["cdm"] = "cdm"  # type: ignore[assignment]
    site: Site = AlongVelocity()
    probe: Law = Uniform()


class CAEmbedded(Pull):
    """CA whose guidance direction is a difference between two guidance scales, Eq. 26.

    For teachers that take their guidance as an input, such as FLUX.1-dev. With the defaults it adds
    what the teacher at guidance 8 adds to itself at guidance 1. Where the velocity is affine in the
    scale, as under classifier-free guidance, it equals `CA`.
    """

    name: Literal["ca_embedded"] = "ca_embedded"
    site: Site = AtAnchor()
    probe: Law = UpToAnchor()
    alpha: Positive = 7.0
    """Strength of the guidance, in units of what one unit of guidance changes."""
    low: Annotated[float, Field(ge=0)] = 1.0
    """The lower guidance scale, in the model's own unit."""
    high: Positive = 8.0
    """The higher one."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.low, self.high)
        return self

    @property
    def unsupported_guidance(self) -> Mapping[str, str]:
        """It queries the network at two guidance scales."""
        return {"cfg": "its network takes no guidance; use ca"}

    def direction(self, xt: Tensor, sigma: Tensor, at: Context) -> Asking[tuple[Tensor, Tensor]]:
        """``alpha (x0_teacher(high) - x0_teacher(low)) / (high - low)``, Eq. 26.

        k compares with the prediction at guidance 1, interpolated.
        """
        less, more = yield [
            Query("teacher", xt, sigma, with_guidance(at.cond, scale))
            for scale in (self.low, self.high)
        ]
        span = self.high - self.low
        reference = torch.lerp(less.x0, more.x0, (1 - self.low) / span)
        return self.alpha / span * (more.x0 - less.x0), reference


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low ({low}) must be below high ({high})")


def with_guidance(cond: Conditioning, scale: float | Tensor) -> Conditioning:
    """Prompts with another guidance scale, for models that take it as an input.

    Args:
        cond: Prompts with a tensor ``guidance`` [B] among theirs.
        scale: In the model's own unit, for all samples or one each, [B].

    Raises:
        FewstepError: There is no such tensor.
    """
    given = cond.tensors.get("guidance")
    if given is None:
        raise FewstepError(
            "the model takes no guidance: its prompts come without any", code="mismatch"
        )
    return cond.replace(guidance=torch.zeros_like(given) + scale)
