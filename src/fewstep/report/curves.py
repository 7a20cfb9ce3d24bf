"""From metrics.jsonl to charts: one chart per family of figures, in a fixed order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.report.charts import Chart, line_chart


class Family(NamedTuple):
    """Figures that share a chart: those whose names the pattern fits, and what to say of them."""

    title: str
    pattern: str
    note: str
    log: bool = False


# A figure belongs to the first family that fits it.
_FAMILIES = (
    Family("Preview score", r"preview/score", "higher is better; the best checkpoint is kept"),
    Family("Student: loss per objective", r"loss/(?!fake_teacher)(.+)", "weighted", log=True),
    Family("Fake teacher: loss", r"loss/(fake_teacher)", "denoising what the student generates"),
    Family("Norm k", r"k/(.+)", "mean distance of the student's x0 from its reference"),
    Family("Gradient norms", r"grad_norm/(.+)", "before clipping", log=True),
    Family("Cosine between directions", r"cosine/(.+)", "near 1: objectives pull the same way"),
    Family("Drift of the latents' mean", r"health/mean_drift", "in standard deviations"),
    Family("Contrast of the latents", r"health/std_ratio", "standard deviation; 1 at the start"),
    Family("Fake teacher's loss by sigma", r"health/fake_teacher_loss@(.+)", "on fixed samples"),
    Family(
        "Gap between the teachers by sigma", r"gap@(.+)", "the fake one's loss minus the true's"
    ),
    Family("Health, other", r"health/(?!teacher_loss@)(.+)", ""),
    Family("Learning rates", r"lr/(.+)", ""),
    Family("Images a second", r"images_per_second", ""),
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that have a step, in order.

    Rows of one step are joined, the later one wins; what is no number, and half a line at the end
    of a run that was killed, is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows: dict[float, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            numbers = {k: float(v) for k, v in row.items() if type(v) in (int, float)}
            rows.setdefault(row["step"], {}).update(numbers)
    return [rows[step] for step in sorted(rows)]


def charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """All families that the rows have something of."""
    rows = [row | _gaps(row) for row in rows]
    names = {name for row in rows for name in row} - {"step"}
    found = []
    for family in _FAMILIES:
        matches = [match for name in names if (match := re.fullmatch(family.pattern, name))]
        names -= {match[0] for match in matches}
        labels = {match[0]: match[match.re.groups].replace("_", " ") for match in matches}
        points = {
            row["step"]: {
                label: row[name]
                for name, label in labels.items()
                if name in row and not math.isinf(row[name])
            }
            for row in rows
            if labels.keys() & row.keys()
        }
        chart = line_chart(family.title, points, family.note, may_log=family.log)
        if chart is not None:
            found.append(chart)
    return found


def _gaps(row: dict[str, Any]) -> dict[str, float]:
    """What distribution matching closes: how much worse the fake teacher fits than the teacher."""
    fake, true = "health/fake_teacher_loss@", "health/teacher_loss@"
    sigmas = [name.removeprefix(fake) for name in row if name.startswith(fake)]
    return {f"gap@{s}": row[fake + s] - row[true + s] for s in sigmas if true + s in row}
