"""The memory section of a recipe: what is held smaller, or elsewhere, at the price of time."""

from __future__ import annotations

from typing import Literal

from fewstep.strict import Section


class MemoryRecipe(Section):
    """Ways to fit a smaller device; none is on by itself. docs/memory.md tells what each costs.

    Attributes:
        base: How the frozen network of mode ``lora`` is held: ``int8``, ``fp8`` or ``nf4``.
            None leaves it in `model.dtype`.
        teacher_dtype: Precision of the teacher in mode ``full``, if another than `model.dtype`.
        trained_dtype: Precision of trained weights in mode ``full``: bfloat16 is rounded at random,
            so that small updates are not lost. None is float32.
        offload_optimizer: The optimizers' moments live in the computer's memory.
        offload_ema: So does the running mean.
        offload_vae: The VAE is on the device only while it decodes previews.
    """

    base: Literal["int8", "fp8", "nf4"] | None = None
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    trained_dtype: Literal["bfloat16"] | None = None
    offload_optimizer: bool = False
    offload_ema: bool = False
    offload_vae: bool = False

    def misfit(self, mode: str, dtype: str) -> str | None:
        """What is wrong with it for a student of some mode, computed in some precision."""
        if self.base is not None and mode != "lora":
            return f"memory.base: mode {mode} trains every network whole; set student.mode=lora"
        for key in ("teacher_dtype", "trained_dtype"):
            if getattr(self, key) is not None and mode != "full":
                return f"memory.{key}: in mode {mode} all share a network; set model.dtype instead"
        if self.trained_dtype is not None and self.trained_dtype != dtype:
            return f"memory.trained_dtype: {self.trained_dtype} needs the same model.dtype"
        return None
