"""The model card: README.md with metadata, use, scores, previews and the recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import fewstep
from fewstep.config import Recipe
from fewstep.export.base import STEPS, Format, Student
from fewstep.export.snippet import TEMPLATES
from fewstep.utils import yaml
from fewstep.utils.files import read_json
from fewstep.utils.privacy import public, public_values

_PAPER = "arXiv:2605.06376"
_LICENCE = ("license", "license_name", "license_link")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(
    place: Path, student: Student, export_format: Format, *, folder: Path, address: str | None
) -> None:
    """Writes README.md into an exported folder, and the picture that it shows.

    Paths of this machine stand in the section on use at most, and not where there is an address.

    Args:
        place: Where the export is being written.
        student: What was exported.
        export_format: What as.
        folder: Where it will be.
        address: Where users will find it once it is published; None: nobody said so.
    """
    height, width = student.size
    recipe = student.recipe
    text = TEMPLATES.get_template("card.md.j2").render(
        metadata=yaml.dump(metadata(student, export_format)).strip(),
        title=f"{student.folder.resolve().name}: pictures in {STEPS} steps",
        teacher=public(student.teacher),
        adapter=export_format.adapter,
        mode="full" if student.adapter is None else "lora",
        step=student.step,
        steps=STEPS,
        height=height,
        width=width,
        usage=export_format.usage(student, address or str(folder)).strip(),
        scores=_scores(student),
        preview=_copy_preview(student, place),
        columns=_columns(student.folder),
        recipe=_as_code(_recipe(recipe)) if recipe else None,
        version=fewstep.__version__,
        paper=_PAPER,
    )
    (place / "README.md").write_text(text, encoding="utf-8")


def metadata(student: Student, export_format: Format) -> dict[str, Any]:
    """The card's YAML header, as the Hugging Face Hub reads it.

    The recipe's `card` section may say more, or otherwise; only the licence is the teacher's where
    the teacher's own card names one, then the recipe's, then `other`.
    """
    teachers = yaml.front_matter(student.backbone.source / "README.md")
    teacher = public(student.teacher)
    repo_id = teacher if _REPO_ID.fullmatch(teacher) else None
    licence = {key: teachers[key] for key in _LICENCE if teachers.get(key)}
    return {
        "license": "other",
        "base_model": repo_id or _first(teachers.get("base_model")) or teacher,
        "base_model_relation": "adapter" if export_format.adapter else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": student.backbone.task,
        "tags": ["few-step", "distillation", "cdm", *(["lora"] if export_format.adapter else [])],
        **public_values(student.recipe.card if student.recipe else {}),
        **(licence if "license" in licence else {}),
    }


def _scores(student: Student) -> list[list[str]]:
    """Figures of the evaluation's configurations, header first; empty if there are none."""
    evaluation = read_json(student.folder / "evaluation.json")
    if evaluation is None or evaluation.get("step") != student.step:
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


def _copy_preview(student: Student, folder: Path) -> str | None:
    """Copies the preview of the exported checkpoint, if one was drawn then; returns its place."""
    picture = student.folder / "previews" / f"step-{student.step:08d}.png"
    if not picture.is_file():
        return None
    (folder / "images").mkdir(exist_ok=True)
    shutil.copyfile(picture, folder / "images" / "preview.png")
    return "images/preview.png"


def _columns(run_folder: Path) -> str:
    """What a preview's columns show, as the trainer noted it."""
    note = read_json(run_folder / "previews" / "previews.json") or {}
    return "; ".join(note.get("columns", ())) or "the teacher; the student"


def _recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without paths of this machine, user names and tokens."""
    return yaml.dump(public_values(recipe.model_dump(mode="json"))).strip()


def _first(value: Any) -> str | None:
    return str(value[0]) if isinstance(value, list) and value else value


def _as_code(text: str) -> str:
    """Text inside a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}\n{fence}"
