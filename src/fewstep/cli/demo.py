"""From a recipe to a report: distil, evaluate, export, summarise. Any recipe, the demo's is one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.cli.console import note, table
from fewstep.config import Recipe


def free_folder(wanted: Path) -> Path:
    """The folder itself if nothing is there, else the first free ``name-2``, ``name-3``, ..."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def run_all(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Everything, one stage after the other; each works on what the one before left in the folder.

    Args:
        recipe: What to do.
        folder: Run folder, made if need be.
        resume: Continue a run that was interrupted. Its whole time is then unknown, as it is where
            the teacher's measurements were in the user's cache.

    Returns:
        What summary.json holds, and the folders: ``run``, ``report``, ``export``.
    """
    import psutil

    from fewstep.evaluation import evaluate_run
    from fewstep.inference.load import export_model
    from fewstep.train import distill

    distill(recipe, folder, resume=resume)
    note(f"1/4 distilled into {folder}")
    note("2/4 evaluating")
    rows = evaluate_run(folder, say=note)["configurations"]
    cached = any(row["measured"]["where"] == "cache" for row in rows)
    if cached:
        note(
            "the teacher's figures are an earlier run's, so this one's minutes and memory are not "
            "counted; FEWSTEP_CACHE=FOLDER keeps them elsewhere"
        )
    note("3/4 exporting")
    export = export_model(folder)
    note("4/4 reporting")
    # The start of Python and its imports count as well.
    seconds = time.time() - psutil.Process().create_time()
    summary = report(folder, seconds=None if resume or cached else seconds)
    places = {"run": folder, "report": folder / "report.html", "export": export}
    return summary | {name: str(place) for name, place in places.items()}


def report(folder: Path, *, seconds: float | None = None) -> dict[str, Any]:
    """Writes summary.json and report.html of an evaluated run; returns the summary."""
    from fewstep.evaluation import summarize
    from fewstep.report import write_report
    from fewstep.utils.hardware import peak_memory_gb

    peak = None if seconds is None else peak_memory_gb()
    summary = summarize(folder, seconds=seconds, peak_memory_gb=peak)
    write_report(folder)
    return summary


def show_criteria(summary: Mapping[str, Any]) -> None:
    """A table of the criteria; nothing where the recipe has none."""
    columns = ("label", "value", "relation", "bound", "met")
    rows = [[criterion[column] for column in columns] for criterion in summary["criteria"]]
    if rows:
        table(("criterion", "measured", "", "wanted", "met"), rows)
