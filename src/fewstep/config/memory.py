"""The memory section of a recipe: what is held smaller, or elsewhere, at the price of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from fewstep.config.strict import Section


class MemoryRecipe(Section):
    """Ways to fit a smaller device; none is on by itself. docs/memory.md tells what each costs."""

    base: Literal["int8", "fp8", "nf4"] | None = None
    """How torchao holds the frozen network of mode `lora`; null leaves it in `model.dtype`. For
    GPUs that the frozen network does not fit."""
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the teacher in mode `full`; null is `model.dtype`."""
    trained_dtype: Literal["bfloat16"] | None = None
    """Precision of trained weights in mode `full`; null is float32. bfloat16 uses stochastic
    rounding, so that small updates are kept in expectation."""
    offload_optimizer: bool = False
    """Keep the optimizers' moments, float32, in the computer's memory."""
    offload_ema: bool = False
    """Keep the running mean of the weights in the computer's memory."""
    offload_vae: bool = False
    """Have the autoencoder on the device only while it decodes previews."""

    def misfit(
        self, mode: str, dtype: str, recomputes: bool | int, optimizers: Iterable[str]
    ) -> str | None:
        """What is wrong with it, if anything.

        Args:
            mode: The student's.
            dtype: The model's precision.
            recomputes: The student's `gradient_checkpointing`.
            optimizers: Their names.
        """
        if self.base is not None and mode != "lora":
            return f"memory.base: mode {mode} trains every network whole; set student.mode=lora"
        if self.base in ("int8", "fp8") and recomputes != 1:
            return (
                f"memory.base: in {self.base} a backward pass would keep all weights decoded; set "
                "student.gradient_checkpointing=true, or take nf4"
            )
        plain = set(optimizers) == {"adamw"} and self.trained_dtype is None
        if self.offload_optimizer and not plain:
            return (
                "memory.offload_optimizer: moves float32 moments only; take optimizer.name=adamw "
                "and no memory.trained_dtype"
            )
        for key in ("teacher_dtype", "trained_dtype"):
            if getattr(self, key) is not None and mode != "full":
                return f"memory.{key}: in mode {mode} all share a network; set model.dtype instead"
        if self.trained_dtype is not None and self.trained_dtype != dtype:
            return f"memory.trained_dtype: {self.trained_dtype} needs the same model.dtype"
        return None
