"""A LoRA for the teacher in one file, as ComfyUI loads it, and a workflow that draws with it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from fewstep.export.base import Format, Student
from fewstep.export.snippet import TEMPLATES, diffusers_usage, example_prompt
from fewstep.export.teacher import teacher_name
from fewstep.export.workflow import FILE, sigmas_of, workflow
from fewstep.models import FAMILIES
from fewstep.utils.files import write_json


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
        """Writes the adapter, see `Backbone.comfyui_lora`, and a workflow that loads it."""
        named = student.backbone.comfyui_lora(student.layers)
        save_file(named, folder / file_name(student), metadata={"format": "pt"})
        write_workflow(folder, student, lora=file_name(student))

    def usage(self, student: Student, address: str) -> str:
        """Where to put the file, and the settings with which it draws."""
        usage = comfyui_usage(student, self.place.format(file=file_name(student)), lora=True)
        if not shares_names(student):
            return f"{usage}\n\nFor diffusers there is `--format lora`."
        python = diffusers_usage(student, address, lora=file_name(student))
        return f"### ComfyUI\n\n{usage}\n\n### diffusers\n\n{python}"


def shares_names(student: Student) -> bool:
    """Whether diffusers and ComfyUI call the layers of the family's LoRAs the same."""
    return student.backbone.comfyui_prefix == f"{student.backbone.net_name}."


def write_workflow(folder: Path, student: Student, **files: str) -> None:
    """Writes a workflow into an exported folder, where ComfyUI can draw the student.

    Args:
        folder: The folder.
        student: The student.
        files: `lora` or `network`, see `workflow`.
    """
    graph = workflow(student, example_prompt(student.recipe), **files)
    if graph is not None:
        write_json(folder / FILE, graph)


def comfyui_usage(student: Student, place: str, *, lora: bool) -> str:
    """Markdown on how to draw with ComfyUI.

    Args:
        student: The student that was written.
        place: The sentence that says where its file goes, without the full stop.
        lora: Whether that file is a LoRA, else a network.
    """
    graph = workflow(student, "", lora="" if lora else None, network=None if lora else "")
    kinds = {node["class_type"]: node["inputs"] for node in (graph or {}).values()}
    height, width = student.size
    return TEMPLATES.get_template("comfyui.md.j2").render(
        place=place,
        base=teacher_name(student),
        lora=lora,
        workflow=FILE if graph else None,
        kinds=kinds,
        names=[
            value
            for inputs in kinds.values()
            for key, value in inputs.items()
            if key.startswith(("ckpt_name", "unet_name", "clip_name", "vae_name")) and value
        ],
        steps=len(student.base_sigmas),
        sigmas=", ".join(f"{sigma:.6g}" for sigma in sigmas_of(student)),
        height=height,
        width=width,
    )


def file_name(student: Student) -> str:
    """Name of the file that people see in a list of LoRAs."""
    steps = len(student.base_sigmas)
    return f"{teacher_name(student).rpartition('/')[2]}-{steps}-steps.safetensors"
