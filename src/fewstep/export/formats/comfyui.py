"""A LoRA for the teacher in one file, as ComfyUI loads it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file

from fewstep.export.base import STEPS, Format, Student
from fewstep.models import FAMILIES
from fewstep.utils.resources import resolve

_USAGE = """\
{place}, on top of {base}. Draw with {steps} steps, sampler
`euler`, cfg 1, at {width} x {height}, with these sigmas:

    {sigmas}
"""


class ComfyUI(Format):
    """The student's adapter under names that ComfyUI maps, right at strength 1."""

    name = "comfyui"
    modes = ("lora",)
    adapter = True
    place: ClassVar[str] = (
        "Put `{file}` into ComfyUI's folder `models/loras` and load it with *Load LoRA (Model)* at "
        "strength 1"
    )

    def check(self, mode: str, family: str) -> None:
        """See `Format.check`; some families' layers are not known to ComfyUI."""
        super().check(mode, family)
        FAMILIES.get(family).comfyui_lora({})

    def write(self, student: Student, folder: Path) -> None:
        """Writes the adapter, see `Backbone.comfyui_lora`."""
        named = student.backbone.comfyui_lora(student.layers)
        save_file(named, folder / file_name(student), metadata={"format": "pt"})

    def usage(self, student: Student, address: str) -> str:
        """Where to put the file, and the settings with which it draws."""
        height, width = student.size
        shift = student.backbone.effective_shift(
            student.shift, height, width, terminal=student.terminal
        )
        sigmas = [*shift(torch.tensor(student.base_sigmas, dtype=torch.float64)).tolist(), 0.0]
        return _USAGE.format(
            place=self.place.format(file=file_name(student)),
            base=base_name(student),
            steps=STEPS,
            width=width,
            height=height,
            sigmas=", ".join(f"{sigma:.4f}" for sigma in sigmas),
        )


def base_name(student: Student) -> str:
    """What people call the teacher: a repo id, or the name of its folder."""
    return resolve(student.teacher).name if resolve(student.teacher).exists() else student.teacher


def file_name(student: Student) -> str:
    """Name of the file that people see in a list of LoRAs."""
    return f"{base_name(student).rpartition('/')[2]}-{STEPS}-steps.safetensors"
