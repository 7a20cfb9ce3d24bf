"""The optimizer sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.strict import Beta, Positive, Section


class OptimizerRecipe(Section):
    """AdamW.

    Attributes:
        name: ``adamw``: float32 moments. The others, of torchao, in 8 bits or float8.
        clip: Bound on the gradient norm before each step.
    """

    name: Literal["adamw", "adamw8bit", "adamwfp8"] = "adamw"
    lr: Positive
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip: Positive = 1.0


class StudentOptimizerRecipe(OptimizerRecipe):
    """The student's optimizer."""

    lr: Positive = 1e-5


class FakeTeacherOptimizerRecipe(OptimizerRecipe):
    """The fake teacher's optimizer."""

    lr: Positive = 5e-6
