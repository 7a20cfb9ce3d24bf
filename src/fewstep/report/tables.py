"""Tables and tiles of the report: figures as text, in the order people read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.utils import yaml

_NONE = "–"
# Key, heading, what is better, and how many digits; shares are shown in percent.
_COLUMNS = (
    ("evaluations", "Evaluations", "a picture", "count"),
    ("seconds_per_image", "Seconds", "a picture", "figure"),
    ("right", "Prompts right", "higher", "share"),
    ("frechet_real", "Frechet, real", "lower", "figure"),
    ("frechet_teacher", "Frechet, teacher", "lower", "figure"),
    ("diversity", "Diversity", "in a prompt", "figure"),
    ("diversity_right", "Diversity", "right pictures", "figure"),
    ("recall_teacher", "Recall", "teacher", "share"),
    ("coverage_teacher", "Coverage", "teacher", "share"),
)


@dataclass(frozen=True)
class Heading:
    """Title of a column and the small print below it."""

    title: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """Cells as text; `kind` is a style: `focus`, `real` or none."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows."""

    columns: tuple[Heading, ...]
    rows: tuple[Row, ...]


def figure(value: float | None, kind: str = "figure") -> str:
    """A figure as text: `count`, `share` (in percent) or `figure` (three digits)."""
    if value is None:
        return _NONE
    if kind == "count":
        return f"{value:.0f}"
    if kind == "share":
        return f"{value * 100:.1f} %"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def duration(seconds: float | None) -> str | None:
    """Seconds as `8 min 20 s`; None stays None."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def gigabytes(value: float | None) -> str | None:
    """Memory as `1.2 GB`; None stays None."""
    return None if value is None else f"{value:.2f} GB"


def score_table(evaluation: Mapping[str, Any]) -> Table | None:
    """One row per configuration, and one of real pictures, which shows how good a score can get."""
    rows = [
        (configuration["name"], _kind(configuration), configuration | configuration["scores"])
        for configuration in evaluation["configurations"]
    ]
    if evaluation.get("real"):
        rows.append(("real pictures", "real", evaluation["real"]["scores"]))
    shown = [c for c in _COLUMNS if any(row.get(c[0]) is not None for _, _, row in rows)]
    if not rows:
        return None
    return Table(
        (Heading("Configuration"), *(Heading(title, detail) for _, title, detail, _ in shown)),
        tuple(
            Row((name, *(figure(row.get(key), form) for key, _, _, form in shown)), kind)
            for name, kind, row in rows
        ),
    )


def attribute_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Share right of each attribute, where a ground truth judged."""
    keys = sorted(
        {
            key
            for configuration in evaluation["configurations"]
            for key in configuration["scores"]
            if key.startswith("right_") and key != "right_error"
        }
    )
    if not keys:
        return None
    return Table(
        (Heading("Attribute right"), *(Heading(key.removeprefix("right_")) for key in keys)),
        tuple(
            Row(
                (
                    configuration["name"],
                    *(figure(configuration["scores"].get(k), "share") for k in keys),
                ),
                _kind(configuration),
            )
            for configuration in evaluation["configurations"]
        ),
    )


def _kind(configuration: Mapping[str, Any]) -> str:
    return "focus" if configuration["model"] == "student" and configuration["steps"] == 4 else ""


def scores_note(evaluation: Mapping[str, Any]) -> str:
    """What the scores were measured on."""
    if not evaluation["configurations"]:
        return ""
    count, (prompts, seeds) = evaluation["prompts"]["count"], evaluation["repeats"]
    return (
        f"{count} prompts that training did not see, one picture each; diversity from {seeds} "
        f"pictures of {prompts} prompts. Features: {evaluation['features']}. "
        f"Recall and coverage are against {evaluation.get('reference', 'the teacher')}."
    )


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures that tell the story: the student at 4 steps beside its teacher at its best."""
    configurations = evaluation["configurations"]
    student = next(
        (configuration for configuration in configurations if _kind(configuration)), None
    )
    teachers = [
        configuration for configuration in configurations if configuration["model"] == "teacher"
    ]
    if student is None or not teachers:
        return []
    teacher = max(teachers, key=lambda configuration: configuration["evaluations"])
    found = []
    for key, name, form in (
        ("evaluations", "Evaluations a picture", "count"),
        ("right", "Prompts right", "share"),
        ("frechet_real", "Frechet distance, real", "figure"),
        ("frechet_teacher", "Frechet distance, teacher", "figure"),
        ("diversity", "Diversity within a prompt", "figure"),
        ("seconds_per_image", "Seconds a picture", "figure"),
    ):
        ours, theirs = (
            (configuration | configuration["scores"]).get(key)
            for configuration in (student, teacher)
        )
        if ours is not None and theirs is not None:
            detail = f"{figure(theirs, form)} for the teacher in {teacher['steps']} steps"
            found.append({"name": name, "value": figure(ours, form), "detail": detail})
    return found


def criteria_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The criteria of summary.json as text."""
    return [
        {
            "label": criterion["label"],
            "measured": "not measured"
            if criterion["value"] is None
            else figure(criterion["value"]),
            "asked": _asked(criterion),
            "met": criterion["met"],
        }
        for criterion in summary.get("criteria", ())
    ]


def _asked(criterion: Mapping[str, Any]) -> str:
    sign = {"<=": "≤", ">=": "≥"}[criterion["relation"]]
    return _NONE if criterion["threshold"] is None else f"{sign} {figure(criterion['threshold'])}"


def subtitle(recipe: str) -> str:
    """What was distilled, from the recipe's text."""
    found = yaml.load(recipe)
    mode = {"full": "full fine-tuning", "lora": "LoRA"}.get(found["student"]["mode"], "")
    terms = ", ".join(term["name"].upper() for term in found["objectives"])
    return (
        f"Teacher {found['model']['path']}, distilled by {terms} ({mode}), "
        f"{found['train']['steps']} iterations, seed {found['train']['seed']}."
    )
