"""A LoRA for the teacher, as diffusers and PEFT load it."""

from __future__ import annotations

from pathlib import Path

from fewstep.export.base import Format, Student
from fewstep.export.formats.comfyui import comfyui_usage, file_name, shares_names, write_workflow
from fewstep.export.snippet import diffusers_usage
from fewstep.models.lora import LORA_WEIGHTS, save_for_peft


class Lora(Format):
    """The student's adapter, right at scale 1."""

    name = "lora"
    modes = ("lora",)
    adapter = True

    def write(self, student: Student, folder: Path) -> None:
        """Writes the adapter for diffusers, see `Backbone.save_lora`, and for PEFT.

        Where ComfyUI takes the same file, there is a workflow for it.
        """
        student.backbone.save_lora(folder, student.layers)
        save_for_peft(folder, student.layers)
        if shares_names(student):
            write_workflow(folder, student, lora=file_name(student))

    def usage(self, student: Student, address: str) -> str:
        """Python that loads the teacher and the adapter with plain diffusers; ComfyUI."""
        python = diffusers_usage(student, address, lora=LORA_WEIGHTS)
        if not shares_names(student):
            return f"{python}\n\nFor ComfyUI there is `--format comfyui`."
        place = (
            f"Copy `{LORA_WEIGHTS}` to ComfyUI's folder `models/loras` as `{file_name(student)}`"
        )
        comfyui = comfyui_usage(student, place, lora=True)
        return f"### diffusers\n\n{python}\n\n### ComfyUI\n\n{comfyui}"
