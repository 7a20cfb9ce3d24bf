"""The model card: README.md with metadata, use, scores, pictures and the recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fewstep
from fewstep.config import Recipe
from fewstep.export.base import STEPS, Format, Student
from fewstep.export.pictures import copy_pictures, copy_sheet
from fewstep.export.snippet import TEMPLATES
from fewstep.export.teacher import HERE, base_model, copy_licence, licence, teacher_name
from fewstep.utils import yaml
from fewstep.utils.files import read_json
from fewstep.utils.privacy import public_values

_PAPER = "arXiv:2605.06376"


def write_card(
    place: Path, student: Student, export_format: Format, *, address: str | None
) -> None:
    """Writes README.md into an exported folder, the pictures that it shows, and the licence.

    No path of this machine stands in it.

    Args:
        place: Where the export is being written.
        student: What was exported.
        export_format: What as.
        address: Where users will find it once it is published; None: nobody said so.
    """
    height, width = student.size
    recipe = student.recipe
    copy_licence(student, place)
    pictures = copy_pictures(student, place)
    text = TEMPLATES.get_template("card.md.j2").render(
        metadata=yaml.dump(metadata(student, export_format, pictures)).strip(),
        title=f"{teacher_name(student).rpartition('/')[2]} in {STEPS} steps",
        teacher=teacher_name(student),
        adapter=export_format.adapter,
        mode="full" if student.adapter is None else "lora",
        step=student.step,
        steps=STEPS,
        height=height,
        width=width,
        usage=export_format.usage(student, address or HERE).strip(),
        scores=_scores(student),
        measured=_measured(student),
        pictures=pictures,
        preview=copy_sheet(student, place),
        columns=_columns(student.folder),
        recipe=_as_code(_recipe(recipe)) if recipe else None,
        version=fewstep.__version__,
        paper=_PAPER,
    )
    (place / "README.md").write_text(text, encoding="utf-8")


def metadata(
    student: Student, export_format: Format, pictures: list[tuple[str, str]]
) -> dict[str, Any]:
    """The card's YAML header, as the Hugging Face Hub reads it.

    The recipe's `card` section may say more, or otherwise; only the licence is the teacher's where
    the teacher's own card names one, then the recipe's, then `other`.

    Args:
        student: What was exported.
        export_format: What as.
        pictures: Prompts, and the pictures of them in the export.
    """
    base = base_model(student)
    relation = "adapter" if export_format.adapter else "finetune"
    said = public_values(student.recipe.card if student.recipe else {})
    terms = licence(student) or {key: said[key] for key in said if key.startswith("license")}
    if terms.setdefault("license", "other") == "other":  # the hub wants to know which
        terms.setdefault("license_name", "as-the-base-model")
    return {
        **terms,
        **({"base_model": base, "base_model_relation": relation} if base else {}),
        "library_name": export_format.library,
        "pipeline_tag": student.backbone.task,
        "tags": ["few-step", "distillation", "cdm", *(["lora"] if export_format.adapter else [])],
        **({"widget": [_widget(*each) for each in pictures]} if pictures else {}),
        **{key: value for key, value in said.items() if not key.startswith("license")},
    }


def _widget(prompt: str, file: str) -> dict[str, Any]:
    return {"text": prompt, "output": {"url": file}}


def _evaluation(student: Student) -> dict[str, Any]:
    """What was measured of this very checkpoint; empty: nothing."""
    found: dict[str, Any] = read_json(student.folder / "evaluation.json") or {}
    return found if found.get("step") == student.step else {}


def _scores(student: Student) -> list[list[str]]:
    """Figures of the evaluation's configurations, header first; empty if there are none."""
    evaluation = _evaluation(student)
    if not evaluation:
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


def _measured(student: Student) -> list[str]:
    """How the figures were measured, a line each."""
    evaluation = public_values(_evaluation(student))
    prompts, device = evaluation.get("prompts") or {}, evaluation.get("hardware") or {}
    names = [metric["name"] for metric in evaluation.get("metrics", ())]
    where = device.get("accelerator") or device.get("device") or device.get("cpu")
    facts = {
        "prompts": prompts.get("count") and f"{prompts['count']}, not seen in training",
        "first seed": evaluation.get("seed"),
        "metrics": ", ".join(names),
        "feature space": evaluation.get("features"),
        "precision": evaluation.get("dtype"),
        "hardware": where,
    }
    return [f"{name}: {value}" for name, value in facts.items() if value not in (None, "", 0)]


def _columns(run_folder: Path) -> str:
    """What a preview's columns show, as the trainer noted it."""
    note = read_json(run_folder / "previews" / "previews.json") or {}
    return "; ".join(note.get("columns", ())) or "the teacher; the student"


def _recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without paths of this machine, user names and tokens."""
    return yaml.dump(public_values(recipe.model_dump(mode="json"))).strip()


def _as_code(text: str) -> str:
    """Text inside a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}\n{fence}"
