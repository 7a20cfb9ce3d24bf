"""A LoRA for the teacher, as diffusers loads it: `pytorch_lora_weights.safetensors`."""

from __future__ import annotations

from pathlib import Path

from fewstep.export.base import Format, Student
from fewstep.export.snippet import diffusers_usage


class Lora(Format):
    """The student's adapter, right at scale 1."""

    name = "lora"
    modes = ("lora",)
    adapter = True

    def write(self, student: Student, folder: Path) -> None:
        """Writes the adapter, see `Backbone.save_lora`."""
        student.backbone.save_lora(folder, student.net, str(student.adapter))

    def usage(self, student: Student, address: str) -> str:
        """Python that loads the teacher and the adapter with plain diffusers."""
        return diffusers_usage(student, address, adapter=True)
