"""The model card: README.md with metadata, exact sigmas, scores, previews, a snippet that runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import fewstep
from fewstep.config import dump_recipe
from fewstep.core.schedules import few_step_sigmas
from fewstep.inference.load import Run, Student
from fewstep.models.base import Backbone
from fewstep.utils import yaml
from fewstep.utils.files import read_json
from fewstep.utils.resources import resolve

_PAPER = "arXiv:2605.06376"
_LICENCE = ("license", "license_name", "license_link")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, eq=False)
class Card:
    """What a card is about."""

    run: Run
    backbone: Backbone
    student: Student
    adapter: bool
    address: str
    steps: int
    dtype: str

    @property
    def base_sigmas(self) -> list[float]:
        """The student's grid before the shift."""
        return few_step_sigmas(self.steps)

    @property
    def any_steps(self) -> str:
        """How to have n steps from the stock pipeline, Eq. 11."""
        if "sigmas" not in self.stock_call:
            return "pass `num_inference_steps=n`"
        return "pass `sigmas=[1 - i / n for i in range(n)]`"

    @property
    def sigmas(self) -> list[float]:
        """Where the student is evaluated."""
        shift = self.backbone.effective_shift(self.run.recipe.grid.shift, *self.run.size)
        return [round(sigma, 6) for sigma in shift(self.base_sigmas)]

    @property
    def stock_call(self) -> dict[str, Any]:
        """What the stock pipeline is called with."""
        return self.backbone.stock_call(self.base_sigmas, *self.run.size)


def write_card(folder: Path, card: Card) -> None:
    """Writes README.md into an exported folder, and the pictures that it shows."""
    environment = Environment(
        loader=PackageLoader("fewstep.export"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _as_code
    height, width = card.run.size
    text = environment.get_template("card.md.j2").render(
        metadata=yaml.dump(metadata(card)).strip(),
        title=f"{card.run.folder.resolve().name}: pictures in {card.steps} steps",
        teacher=_teacher(card.run),
        adapter=card.adapter,
        mode=card.student.recipe.mode,
        step=card.student.step,
        steps=card.steps,
        base_sigmas=card.base_sigmas if "sigmas" in card.stock_call else None,
        sigmas=card.sigmas,
        any_steps=card.any_steps,
        height=height,
        width=width,
        dtype=card.dtype,
        snippet=snippet(card),
        scores=_scores(card),
        preview=_copy_preview(card, folder),
        columns=_columns(card.run),
        recipe=dump_recipe(card.run.recipe).strip(),
        version=fewstep.__version__,
        paper=_PAPER,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def metadata(card: Card) -> dict[str, Any]:
    """The card's YAML header, as the Hugging Face Hub reads it.

    The recipe's `card` section may say more, or otherwise; only the licence is the teacher's where
    the teacher's own card names one, then the recipe's, then `other`.
    """
    recipe, teachers = card.run.recipe, yaml.front_matter(card.backbone.source / "README.md")
    address = recipe.model.path
    own = address if _REPO_ID.fullmatch(address) and not resolve(address).exists() else None
    licence = {key: teachers[key] for key in _LICENCE if teachers.get(key)}
    return {
        "license": "other",
        "base_model": own or _first(teachers.get("base_model")) or _teacher(card.run),
        "base_model_relation": "adapter" if card.adapter else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": card.backbone.task,
        "tags": ["few-step", "distillation", "cdm", *(["lora"] if card.adapter else [])],
        **recipe.card,
        **(licence if "license" in licence else {}),
    }


def snippet(card: Card) -> str:
    """Python that draws, with plain diffusers, the picture that `fewstep sample` draws."""
    pipeline = type(card.backbone.pipe).__name__
    taken, keep = card.backbone.stock_result()
    scheduler = (
        card.backbone.student_scheduler(card.run.recipe.grid.shift) if card.adapter else None
    )
    base = _load_path(card.run) if card.adapter else card.address
    load = {"torch_dtype": f"torch.{card.dtype}"}
    load |= {name: _literal(value) for name, value in card.backbone.stock_load().items()}
    more = "".join(f", {name}={value}" for name, value in load.items())
    return "\n".join(
        [
            "import torch",
            f"from diffusers import {pipeline}",
            *([f"from diffusers import {type(scheduler).__name__}"] if scheduler else []),
            "",
            f"pipe = {pipeline}.from_pretrained({_literal(base)}{more})",
            *([card.backbone.lora_call(card.address)] if card.adapter else []),
            *([_scheduler_line(scheduler)] if scheduler else []),
            'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
            "image = pipe(",
            f"    prompt={_literal(_example(card))},",
            *(f"    {name}={_literal(value)}," for name, value in card.stock_call.items()),
            '    generator=torch.Generator("cpu").manual_seed(0),',
            f"){taken}",
            keep,
        ]
    )


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


def _load_path(run: Run) -> str:
    path = resolve(run.recipe.model.path)
    return str(path.absolute()) if path.exists() else run.recipe.model.path


def _example(card: Card) -> str:
    """A prompt for the snippet: the first one that was previewed, or evaluated, or trained on."""
    recipe = card.run.recipe
    if recipe.preview.prompts:
        return recipe.preview.prompts[0]
    data = recipe.data
    sources = (recipe.preview.path, None), (recipe.evaluate.prompts, None)
    for file, column in (*sources, (data.prompts, data.column)):
        if file and resolve(file).is_file():
            from fewstep.data.prompts import read_prompts

            return read_prompts(file, column=column).texts[0]
    return "a photograph of a lighthouse at dusk"


def _scores(card: Card) -> list[list[str]]:
    """Figures of the evaluation's configurations, header first; empty if there are none."""
    evaluation = read_json(card.run.folder / "evaluation.json")
    if evaluation is None or evaluation.get("step") != card.student.step:
        return []
    configurations = evaluation["configurations"]
    labels = {"evaluations": "evaluations a picture", "seconds_per_image": "seconds a picture"}
    columns = evaluation.get("columns", {}).items()
    labels |= {name: column["label"] for name, column in columns if not column["group"]}
    rows = [["", *(row["name"] for row in configurations)]]
    for name, label in labels.items():
        values = [row.get(name, row.get("figures", {}).get(name)) for row in configurations]
        rows.append([label, *("–" if v is None else f"{v:.4g}" for v in values)])
    return rows


def _copy_preview(card: Card, folder: Path) -> str | None:
    """Copies the preview of the exported checkpoint, if one was drawn then; returns its place."""
    picture = card.run.folder / "previews" / f"step-{card.student.step:08d}.png"
    if not picture.is_file():
        return None
    (folder / "images").mkdir(exist_ok=True)
    shutil.copyfile(picture, folder / "images" / "preview.png")
    return "images/preview.png"


def _columns(run: Run) -> str:
    """What a preview's columns show, as the trainer noted it."""
    note = read_json(run.folder / "previews" / "previews.json") or {}
    return "; ".join(note.get("columns", ())) or "the teacher; the student"


def _teacher(run: Run) -> str:
    """The teacher's repo id or `package://` address; of a local folder the name, not the path."""
    text = run.recipe.model.path
    return resolve(text).name if resolve(text).exists() and "://" not in text else text


def _first(value: Any) -> str | None:
    return str(value[0]) if isinstance(value, list) and value else value


def _as_code(text: str) -> str:
    """Text inside a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}\n{fence}"
