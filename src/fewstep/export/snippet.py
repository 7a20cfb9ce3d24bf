"""Python that draws, with plain diffusers, the pictures that `fewstep sample` draws."""

from __future__ import annotations

import json
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jinja2 import Environment, PackageLoader, StrictUndefined

from fewstep.config import Recipe
from fewstep.export.base import STEPS, Student
from fewstep.export.teacher import HERE, repo_id_of, teacher_name
from fewstep.utils.resources import SCHEME, current_address, resolve

TEMPLATES = Environment(
    loader=PackageLoader("fewstep.export"),
    autoescape=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def diffusers_usage(student: Student, address: str, *, lora: str | None = None) -> str:
    """Markdown on how to draw with diffusers: a snippet, sigmas, guidance, other step counts.

    Args:
        student: The student that was written.
        address: What the snippet loads: a repo id, or `HERE`, the export's own folder.
        lora: File of the LoRA that was written; None: a whole pipeline was.
    """
    height, width = student.size
    base = torch.tensor(student.base_sigmas, dtype=torch.float64)
    shift = student.backbone.effective_shift(
        student.shift, height, width, terminal=student.terminal
    )
    shifted = shift(base).tolist()
    takes_sigmas = "sigmas" in student.stock_call
    return TEMPLATES.get_template("usage.md.j2").render(
        adapter=lora is not None,
        steps=STEPS,
        base_sigmas=student.base_sigmas if takes_sigmas else None,
        sigmas=[round(sigma, 6) for sigma in shifted],
        any_steps="sigmas=[1 - i / n for i in range(n)]"
        if takes_sigmas
        else "num_inference_steps=n",
        height=height,
        width=width,
        dtype=student.dtype,
        snippet=snippet(student, address, lora=lora),
        here=address == HERE,
    )


def snippet(student: Student, address: str, *, lora: str | None = None) -> str:
    """Python that loads an export from an address and draws one picture."""
    adapter = lora is not None
    backbone = student.backbone
    pipeline, own = type(backbone.pipe).__name__, backbone.pipeline_class
    library = "diffusers" if own is DiffusionPipeline else own.__module__
    taken, keep = backbone.stock_result()
    scheduler = backbone.student_scheduler(student.shift, student.terminal)
    scheduler = scheduler if adapter and backbone.needs_scheduler(scheduler) else None
    before, base = _base(student) if adapter else ([], _literal(address))
    load = {"torch_dtype": f"torch.{student.dtype}"}
    load |= {name: _literal(value) for name, value in backbone.stock_load().items()}
    more = "".join(f", {name}={value}" for name, value in load.items())
    return "\n".join(
        [
            "import torch",
            f"from {library} import {pipeline}",
            *([f"from diffusers import {type(scheduler).__name__}"] if scheduler else []),
            "",
            *before,
            f"pipe = {pipeline}.from_pretrained({base}{more})",
            *([] if lora is None else [backbone.lora_call(address, lora)]),
            *([_scheduler_line(scheduler)] if scheduler else []),
            'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
            "image = pipe(",
            f"    prompt={_literal(example_prompt(student.recipe))},",
            *(f"    {name}={_literal(value)}," for name, value in student.stock_call.items()),
            '    generator=torch.Generator("cpu").manual_seed(0),',
            f"){taken}",
            keep,
        ]
    )


def example_prompt(recipe: Recipe | None) -> str:
    """A prompt for the snippet: the first one that was previewed, or evaluated, or trained on."""
    from fewstep.data.prompts import read_prompts

    if recipe is not None:
        sources = (recipe.preview.prompts, None), (recipe.evaluate.prompts, None)
        for source, column in (*sources, (recipe.data.prompts, recipe.data.column)):
            if source and (not isinstance(source, str) or resolve(source).is_file()):
                return read_prompts(source, column=column).texts[0]
    return "a photograph of a lighthouse at dusk"


def _scheduler_line(scheduler: Any) -> str:
    """The scheduler as Python source: its settings that differ from the class's own."""
    config = dict(scheduler.config)
    plain = type(scheduler)()
    changed = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and plain.config.get(name) != value
    }
    arguments = ", ".join(f"{name}={_literal(value)}" for name, value in changed.items())
    return f"pipe.scheduler = {type(scheduler).__name__}({arguments})"


def _literal(value: Any) -> str:
    """A value as Python source; strings as JSON has them, which cannot end the snippet's fence."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _base(student: Student) -> tuple[list[str], str]:
    """Lines of Python that say where the teacher is, and what then names it; no path of ours."""
    if repo := repo_id_of(student):
        return [], _literal(repo)
    if student.teacher.startswith(SCHEME):
        package, _, inside = current_address(student.teacher).removeprefix(SCHEME).partition("/")
        place = f"files({_literal(package)}) / {_literal(inside)}"
        return ["from importlib.resources import files", "", f"base = str({place})"], "base"
    name = _literal(teacher_name(student))
    return [f"base = {name}  # the teacher: its folder, or its repo id"], "base"
