"""Tables and tiles of the report: figures as text, in the order people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.utils import yaml

_FOCUS = 4  # evaluations a picture that the student is distilled for
_MOST_TILES = 6
_DIRECTIONS = {True: "higher is better", False: "lower is better", None: ""}
_COST: dict[str, dict[str, Any]] = {  # columns that every evaluation has
    "evaluations": {"label": "Evaluations", "percent": False, "detail": "a picture"},
    "seconds_per_image": {"label": "Seconds", "percent": False, "detail": "a picture"},
}


def figure(value: float | None, percent: bool = False) -> str:
    """A figure with three digits, or as a percentage; a count as it is."""
    if value is None:
        return "–"
    if percent:
        return f"{value * 100:.1f} %"
    if isinstance(value, int):
        return str(value)
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


def figure_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of all metrics, then one for each further group of figures.

    A row per configuration, with a star where it was not drawn now, and one of real pictures, which
    shows how good a figure can get. Headings come with the small print below them, rows with their
    style: `focus`, `real` or none.
    """
    rows = [
        (_style(row), row["name"] + ("" if row["measured"]["where"] == "now" else " *"), row)
        for row in evaluation["configurations"]
    ]
    if evaluation.get("real"):
        rows.append(("real", "real pictures", evaluation["real"]))
    columns = evaluation.get("columns", {})
    groups = {column["group"] for column in columns.values()} if rows else set()
    tables = []
    for group in sorted(groups):  # the empty one, of all metrics, comes first
        shown = {name: column for name, column in columns.items() if column["group"] == group}
        shown = shown if group else _COST | shown
        headings = [
            (column["label"], column.get("detail") or _DIRECTIONS[column["higher_is_better"]])
            for column in shown.values()
        ]
        cells = [
            (style, [name, *(_cell(row, key, column) for key, column in shown.items())])
            for style, name, row in rows
        ]
        headings.insert(0, (group or "Configuration", ""))
        tables.append({"headings": headings, "rows": cells})
    return tables


def _style(row: Mapping[str, Any]) -> str:
    return "focus" if row["model"] == "student" and row["steps"] == _FOCUS else ""


def _cell(row: Mapping[str, Any], name: str, column: Mapping[str, Any]) -> str:
    """A figure as text, with its standard error where there is one."""
    value, error = (row["figures"].get(key, row.get(key)) for key in (name, f"{name}_error"))
    text = figure(value, column["percent"])
    if error is None:
        return text
    return f"{text.removesuffix(' %')} ± {figure(error, column['percent'])}"


def earlier(evaluation: Mapping[str, Any]) -> list[str]:
    """When and on what configurations were measured that were not drawn now."""
    made = [row["measured"] for row in evaluation["configurations"]]
    return sorted({f"{m['date']} on {m['hardware']['cpu']}" for m in made if "date" in m})


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures that tell the story: the student at 4 steps beside its teacher at its best."""
    rows = evaluation["configurations"]
    student = next((row for row in rows if _style(row)), None)
    teacher = next((row for row in rows if row["name"] == evaluation.get("reference")), None)
    if student is None or teacher is None:
        return []
    columns = _COST | {
        k: column for k, column in evaluation["columns"].items() if not column["group"]
    }
    measured = [row | row["figures"] for row in (student, teacher)]
    return [
        {
            "name": f"{column['label']} {column.get('detail', '')}".rstrip(),
            "value": figure(measured[0][name], column["percent"]),
            "detail": f"{_cell(teacher, name, column)} for the teacher in {teacher['steps']} steps",
        }
        for name, column in columns.items()
        if all(name in figures for figures in measured)
    ][:_MOST_TILES]


def subtitle(recipe: str) -> str:
    """What was distilled, from the recipe's text."""
    found = yaml.load(recipe)
    mode = {"full": "full fine-tuning", "lora": "LoRA"}.get(found["student"]["mode"], "")
    terms = ", ".join(term["name"].upper() for term in found["objectives"])
    return (
        f"Teacher {found['model']['path']}, distilled by {terms} ({mode}), "
        f"{found['train']['steps']} iterations, seed {found['train']['seed']}."
    )
