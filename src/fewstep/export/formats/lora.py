"""A LoRA for the teacher, as diffusers and PEFT load it."""

from __future__ import annotations

from pathlib import Path

from fewstep.export.base import Format, Student
from fewstep.export.snippet import diffusers_usage
from fewstep.models.lora import save_for_peft


class Lora(Format):
    """The student's adapter, right at scale 1."""

    name = "lora"
    modes = ("lora",)
    adapter = True

    def write(self, student: Student, folder: Path) -> None:
        """Writes the adapter for diffusers, see `Backbone.save_lora`, and for PEFT."""
        student.backbone.save_lora(folder, student.layers)
        save_for_peft(folder, student.layers)

    def usage(self, student: Student, address: str) -> str:
        """Python that loads the teacher and the adapter with plain diffusers."""
        return diffusers_usage(student, address, adapter=True)
