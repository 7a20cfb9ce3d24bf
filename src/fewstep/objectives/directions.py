"""Directions: where the teachers pull. An objective's third choice, Eq. 22-23 and 26.

A direction is called as ``direction(ask, xt, sigma, cond, null) -> (direction, reference)``, both
[B, ...] clean latents: the pull, and what the normaliser of `pull_norm` compares x0 with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.flow import x0_from_velocity
from fewstep.records import Conditioning, VelocityFn


class Ask(Protocol):
    """The three networks an objective may ask, each a velocity field (see `VelocityFn`)."""

    @property
    def student(self) -> VelocityFn:
        """Trained; asked with gradients."""

    @property
    def teacher(self) -> VelocityFn:
        """Frozen pretrained network."""

    @property
    def fake_teacher(self) -> VelocityFn:
        """Model of what the student now generates."""


class Direction(Protocol):
    """Anything that can say where the teachers pull."""

    def __call__(
        self, ask: Ask, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Direction and reference at a probe, [B, ...] each."""


@dataclass(frozen=True)
class Guidance:
    """Towards the prompt, Eq. 22: ``alpha (x0_teacher(cond) - x0_teacher(null))``.

    Attributes:
        alpha: Strength, in units of the teacher's own guidance difference.
    """

    alpha: float

    def __call__(
        self, ask: Ask, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]; two evaluations of the teacher."""
        with_prompt = x0_from_velocity(xt, ask.teacher(xt, sigma, cond), sigma)
        without = x0_from_velocity(xt, ask.teacher(xt, sigma, null), sigma)
        return self.alpha * (with_prompt - without), with_prompt


@dataclass(frozen=True)
class GuidanceDifference:
    """Towards more guidance, Eq. 26: ``alpha (x0_teacher(high) - x0_teacher(low)) / (high - low)``.

    For a teacher that takes its guidance as an input. Where its velocity is affine in it, as under
    classifier-free guidance, direction and reference are those of `Guidance`.

    Attributes:
        alpha: Strength, in units of the difference that one unit of guidance makes.
        low: Guidance of the one question, in the model's own scale.
        high: Guidance of the other, above it.
    """

    alpha: float
    low: float
    high: float

    def __call__(
        self, ask: Ask, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]; two evaluations of the teacher."""
        less, more = (
            x0_from_velocity(xt, ask.teacher(xt, sigma, at_guidance(cond, scale)), sigma)
            for scale in (self.low, self.high)
        )
        span = self.high - self.low
        return self.alpha / span * (more - less), torch.lerp(less, more, (1 - self.low) / span)


def at_guidance(cond: Conditioning, scale: float | Tensor) -> Conditioning:
    """Prompts asked at another guidance, for models that take it as an input.

    Args:
        cond: Prompts with a tensor ``guidance`` [B] among theirs.
        scale: In the model's own scale, for all samples or one each, [B].

    Raises:
        FewstepError: There is no such tensor.
    """
    given = cond.tensors.get("guidance")
    if given is None:
        raise FewstepError("the model takes no guidance: its prompts come without any")
    return cond.replace(guidance=torch.zeros_like(given) + scale)


@dataclass(frozen=True)
class TeacherMinusFake:
    """Towards the teacher's distribution, Eq. 23: ``x0_teacher(cond) - x0_fake(cond)``."""

    def __call__(
        self, ask: Ask, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]; one evaluation of each of the two teachers."""
        real = x0_from_velocity(xt, ask.teacher(xt, sigma, cond), sigma)
        fake = x0_from_velocity(xt, ask.fake_teacher(xt, sigma, cond), sigma)
        return real - fake, real
