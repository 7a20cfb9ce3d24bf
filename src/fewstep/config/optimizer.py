"""The optimizer sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.strict import Beta, Positive, Rate, Section


class OptimizerRecipe(Section):
    """AdamW."""

    name: Literal["adamw", "adamw8bit", "adamwfp8"] = "adamw"
    """`adamw` keeps its moments in float32; `adamw8bit` and `adamwfp8` (of torchao) in 8 bits, a
    quarter of that memory."""
    lr: Rate
    """Learning rate after the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the first and the second moment."""
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    """Decoupled weight decay, times the learning rate in each update."""
    clip: Positive = 1.0
    """Bound on the norm of the whole gradient in each update."""


class StudentOptimizerRecipe(OptimizerRecipe):
    """The student's optimizer."""

    lr: Rate = 1e-5
    """Learning rate after the warm-up; 1e-4 for LoRA."""


class FakeTeacherOptimizerRecipe(OptimizerRecipe):
    """The fake teacher's optimizer."""

    lr: Rate = 5e-6
    """Learning rate after the warm-up; 2e-5 for LoRA."""
