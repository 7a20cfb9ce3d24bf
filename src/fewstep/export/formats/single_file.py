"""The network in one file, under the names that its authors published: ComfyUI, GGUF converters."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from fewstep.export.base import Format, Student
from fewstep.export.formats.comfyui import comfyui_usage, file_name, write_workflow
from fewstep.export.formats.diffusers import merge_adapters
from fewstep.models.original import check_layout, original_layout

_GGUF = """\
The file is also what GGUF converters take, such as `tools/convert.py --src` of ComfyUI-GGUF; it is
written with `--dtype bfloat16` for that."""


class SingleFile(Format):
    """The student's network alone, an adapter merged; text encoders and VAE are the teacher's."""

    name = "single-file"
    library = "diffusion-single-file"

    def check(self, mode: str, family: str) -> None:
        """See `Format.check`; of some families no such layout is known."""
        super().check(mode, family)
        check_layout(family)

    def write(self, student: Student, folder: Path) -> None:
        """Writes the network, and a workflow that loads it."""
        if student.adapter is not None:
            merge_adapters(student.net)
        student.net.to(getattr(torch, student.stored))
        weights = original_layout(student.backbone.name, student.net.state_dict())
        plain = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(plain, folder / file_name(student), metadata={"format": "pt"})
        write_workflow(folder, student, network=file_name(student))

    def usage(self, student: Student, address: str) -> str:
        """Where to put the file, and the settings with which it draws."""
        place = f"Put `{file_name(student)}` into ComfyUI's folder `models/diffusion_models`"
        return f"{comfyui_usage(student, place, lora=False)}\n\n{_GGUF}"
