"""Putting the page together: what there is of a run is shown, what is missing is left out."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import fewstep
from fewstep.report import charts, pictures, tables
from fewstep.report.metrics import read_metrics
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, write_text
from fewstep.utils.resources import expand


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes a run's report and returns its path.

    Args:
        run_folder: A run, trained and perhaps evaluated.
        out: The file; None is report.html in the run.

    Raises:
        FewstepError: It is not a run's folder.
    """
    folder = expand(run_folder)
    if not (folder / "config.yaml").is_file():
        raise FewstepError(
            f"{run_folder}: not a run folder (no config.yaml in it)", code="missing-file"
        )
    page = environment().get_template("report.html.j2").render(_content(folder))
    final = expand(out) if out is not None else folder / "report.html"
    write_text(final, page)
    return final


def environment() -> Environment:
    """The templates of this package."""
    made = Environment(
        loader=PackageLoader("fewstep.report"),
        autoescape=True,  # prompts are text, whatever they contain
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = tables.figure
    return made


def _content(folder: Path) -> dict[str, Any]:
    evaluation = read_json(folder / "evaluation.json") or {}
    summary = read_json(folder / "summary.json") or {}
    if "columns" not in evaluation:  # not evaluated, or by an older version
        evaluation, summary = {"configurations": []}, {}
    metrics = read_metrics(folder / "metrics.jsonl")
    recipe = (folder / "config.yaml").read_text(encoding="utf-8").strip()
    return {
        "title": f"{folder.resolve().name}: a text-to-image model in four steps",
        "subtitle": tables.subtitle(recipe),
        "version": fewstep.__version__,
        "tiles": tables.tiles(evaluation),
        "side_by_side": pictures.side_by_side(folder, evaluation),
        "by_steps": pictures.by_steps(folder, evaluation),
        "figures": tables.figure_tables(evaluation),
        "evaluation": evaluation,
        "earlier": tables.earlier(evaluation),
        "criteria": summary.get("criteria"),
        "criteria_met": summary.get("criteria_met"),
        "charts": charts.charts(metrics),
        "previews": pictures.previews(folder),
        "facts": _facts(evaluation, summary, metrics),
        "recipe": recipe,
    }


def _facts(
    evaluation: dict[str, Any], summary: dict[str, Any], metrics: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    facts: dict[str, object] = {}
    if hardware := summary.get("hardware") or evaluation.get("hardware"):
        facts["Processor"] = f"{hardware['cpu']}, {hardware['cores']} cores"
        facts["Accelerator"] = hardware.get("accelerator")
        facts["Memory"] = f"{hardware['memory_gb']} GB" if "memory_gb" in hardware else None
        facts["Software"] = f"Python {hardware['python']}, torch {hardware['torch']}"
    peak = summary.get("peak_memory_gb")
    facts |= {
        "Whole run": tables.duration(summary.get("seconds")),
        "Peak memory": None if peak is None else f"{peak:.2f} GB",
        "Evaluation": tables.duration(evaluation.get("seconds")),
        "Iterations": f"{metrics[-1]['step']:.0f}" if metrics else None,
        "Student of step": evaluation.get("step"),
        "Written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]
