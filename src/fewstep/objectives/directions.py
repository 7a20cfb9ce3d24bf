"""Directions: where the teachers pull. An objective's third choice, Eq. 22-23 and 26.

A direction says what it asks the teachers at a probe, and what it makes of the clean latents that
they answer with. The two are apart so that several objectives can ask in one batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.types import Conditioning
from fewstep.objectives.questions import Ask, Question, reply_to
from fewstep.utils.errors import FewstepError


class Direction(ABC):
    """Anything that can say where the teachers pull."""

    @abstractmethod
    def questions(
        self, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> Sequence[Question]:
        """What it asks at a probe; each question is an evaluation."""

    @abstractmethod
    def between(self, *x0: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...] each, from the clean latents of the replies.

        The direction is the pull; `pull_norm` compares the student's x0 with the reference.
        """

    def __call__(
        self, ask: Ask, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Direction and reference at a probe, [B, ...] each: asks and answers, by itself."""
        replies = reply_to(ask, self.questions(xt, sigma, cond, null))
        return self.between(*(reply.x0 for reply in replies))


@dataclass(frozen=True)
class Guidance(Direction):
    """Towards the prompt, Eq. 22: ``alpha (x0_teacher(cond) - x0_teacher(null))``.

    Attributes:
        alpha: Strength, in units of the teacher's own guidance difference.
    """

    alpha: float

    def questions(
        self, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> Sequence[Question]:
        """Two to the teacher: with the prompt and without."""
        return [Question("teacher", xt, sigma, each) for each in (cond, null)]

    def between(self, *x0: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]."""
        with_prompt, without = x0
        return self.alpha * (with_prompt - without), with_prompt


@dataclass(frozen=True)
class GuidanceDifference(Direction):
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

    def questions(
        self, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> Sequence[Question]:
        """Two to the teacher: at the lower guidance and at the higher one."""
        scales = (self.low, self.high)
        return [Question("teacher", xt, sigma, at_guidance(cond, scale)) for scale in scales]

    def between(self, *x0: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]."""
        less, more = x0
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
        raise FewstepError(
            "the model takes no guidance: its prompts come without any", code="mismatch"
        )
    return cond.replace(guidance=torch.zeros_like(given) + scale)


@dataclass(frozen=True)
class TeacherMinusFake(Direction):
    """Towards the teacher's distribution, Eq. 23: ``x0_teacher(cond) - x0_fake(cond)``."""

    def questions(
        self, xt: Tensor, sigma: Tensor, cond: Conditioning, null: Conditioning
    ) -> Sequence[Question]:
        """One to each of the two teachers."""
        return [
            Question("teacher", xt, sigma, cond),
            Question("fake_teacher", xt, sigma, cond),
        ]

    def between(self, *x0: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and reference, [B, ...]."""
        real, fake = x0
        return real - fake, real
