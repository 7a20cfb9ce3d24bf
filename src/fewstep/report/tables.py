"""Tables and tiles of the report: figures as text, in the order people read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.utils import yaml

_NONE = "–"
_FOCUS = 4  # evaluations a picture that the student is distilled for
_MOST_TILES = 6
_COST = {  # columns that every evaluation has
    "evaluations": {"label": "Evaluations", "kind": "count"},
    "seconds_per_image": {"label": "Seconds", "kind": "figure"},
}


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


def figure_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """The table of all metrics, then one for each further group of figures.

    A row per configuration, and one of real pictures, which shows how good a figure can get.
    """
    rows = [(_mark(row), _kind(row), row | row["figures"]) for row in evaluation["configurations"]]
    if evaluation.get("real"):
        rows.append(("real pictures", "real", evaluation["real"]["figures"]))
    columns = evaluation.get("columns", {})
    groups = dict.fromkeys(column["group"] for column in columns.values()) if rows else {}
    tables = []
    for group in sorted(groups, key=bool):
        shown = {name: column for name, column in columns.items() if column["group"] == group}
        if not group:
            shown = {**_COST, **shown}
        headings = [Heading(column["label"], _small_print(column)) for column in shown.values()]
        tables.append(
            Table(
                (Heading(group or "Configuration"), *headings),
                tuple(
                    Row((name, *(_cell(values, key, shown[key]) for key in shown)), kind)
                    for name, kind, values in rows
                ),
            )
        )
    return tables


def _small_print(column: Mapping[str, Any]) -> str:
    if "kind" in column:
        return "a picture"
    return {True: "higher is better", False: "lower is better"}.get(column["higher_is_better"], "")


def _cell(values: Mapping[str, Any], name: str, column: Mapping[str, Any]) -> str:
    """A figure as text, with its standard error where there is one."""
    kind = column.get("kind") or ("share" if column["percent"] else "figure")
    error = values.get(f"{name}_error")
    text = figure(values.get(name), kind)
    return text if error is None else f"{text.removesuffix(' %')} ± {figure(error, kind)}"


def _mark(row: Mapping[str, Any]) -> str:
    """A configuration's name, with a star where it was not drawn now."""
    return row["name"] + ("" if row["measured"]["where"] == "now" else " *")


def _kind(row: Mapping[str, Any]) -> str:
    return "focus" if row["model"] == "student" and row["steps"] == _FOCUS else ""


def figures_note(evaluation: Mapping[str, Any]) -> str:
    """What the figures were measured on, and when, where that was not now."""
    if not evaluation["configurations"]:
        return ""
    count, (prompts, seeds) = evaluation["prompts"]["count"], evaluation["repeats"]
    note = (
        f"{count} prompts that training did not see, one picture each, and {seeds} pictures of "
        f"{prompts} of them. ± is one standard error."
    )
    if evaluation["features"]:
        note += f" Feature space: {evaluation['features']}."
    if "reference" in evaluation:
        note += f" The teacher to compare with is {evaluation['reference']}."
    before = [row["measured"] for row in evaluation["configurations"]]
    dates = {f"{made['date']} on {made['hardware']['cpu']}" for made in before if "date" in made}
    return note + (f" * Drawn and measured earlier: {', '.join(sorted(dates))}." if dates else "")


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures that tell the story: the student at 4 steps beside its teacher at its best."""
    rows = evaluation["configurations"]
    student = next((row for row in rows if _kind(row)), None)
    teacher = next((row for row in rows if row["name"] == evaluation.get("reference")), None)
    if student is None or teacher is None:
        return []
    columns = {
        **_COST,
        **{name: c for name, c in evaluation["columns"].items() if not c["group"]},
    }
    tiles = []
    for name, column in columns.items():
        ours, theirs = (row | row["figures"] for row in (student, teacher))
        if name in ours and name in theirs:
            detail = f"{_cell(theirs, name, column)} for the teacher in {teacher['steps']} steps"
            value = _cell({name: ours[name]}, name, column)
            label = column["label"] + (" a picture" if name in _COST else "")
            tiles.append({"name": label, "value": value, "detail": detail})
    return tiles[:_MOST_TILES]


def criteria_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The criteria of summary.json as text."""
    return [
        {
            "label": criterion["label"],
            "measured": figure(criterion["value"]),
            "wanted": {"<=": "≤ ", ">=": "≥ "}[criterion["relation"]] + figure(criterion["bound"]),
            "met": {True: "yes", False: "no", None: "not measured"}[criterion["met"]],
        }
        for criterion in summary.get("criteria", ())
    ]


def subtitle(recipe: str) -> str:
    """What was distilled, from the recipe's text."""
    found = yaml.load(recipe)
    mode = {"full": "full fine-tuning", "lora": "LoRA"}.get(found["student"]["mode"], "")
    terms = ", ".join(term["name"].upper() for term in found["objectives"])
    return (
        f"Teacher {found['model']['path']}, distilled by {terms} ({mode}), "
        f"{found['train']['steps']} iterations, seed {found['train']['seed']}."
    )
