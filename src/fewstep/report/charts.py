"""Curves of a run's metrics as static SVG: geometry is worked out here, the template draws it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

WIDTH, HEIGHT = 560, 240
LEFT, TOP, RIGHT, BOTTOM = 54, 12, WIDTH - 14, HEIGHT - 26  # where lines are drawn
MOST_POINTS = 160  # of a line; more are averaged, as a screen cannot show them
Points: TypeAlias = Mapping[float, Mapping[str, float]]
"""Values of lines by x and name. A line goes on where a value is missing and breaks at a NaN."""


@dataclass(frozen=True)
class Chart:
    """Everything that the template needs to draw one chart, in pixels of the view box.

    Attributes:
        lines: Name and SVG path of each line.
        x_ticks: Place and label of each.
        y_ticks: The same.
        strips: Left and right edge, and what pointing there shows: a place and lines of text.
        zero: Where zero is, if it is inside.
    """

    title: str
    note: str
    lines: list[tuple[str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    strips: list[tuple[float, float, float, list[str]]]
    zero: float | None
    size: tuple[int, int] = (WIDTH, HEIGHT)
    box: tuple[int, int, int, int] = (LEFT, TOP, RIGHT, BOTTOM)


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


def line_chart(title: str, points: Points, note: str = "", *, may_log: bool = True) -> Chart | None:
    """Chart of some lines over a common x; None where no line has a finite value.

    The y axis is logarithmic, if it may be, where all values are positive and span more than two
    decades.
    """
    points = thin(points)
    finite = {
        x: {name: y for name, y in values.items() if math.isfinite(y)}
        for x, values in points.items()
    }
    ys = [y for values in finite.values() for y in values.values()]
    if not ys:
        return None
    names = sorted({name for values in finite.values() for name in values})
    log = may_log and min(ys) > 0 and max(ys) / min(ys) > 100
    x_low, x_high = _widen(min(points), max(points))
    y_values = log_ticks(min(ys), max(ys)) if log else ticks(*_widen(min(ys), max(ys)))
    y_low, y_high = min(*y_values, *ys), max(*y_values, *ys)

    def place_x(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)

    def place_y(y: float) -> float:
        low, high, value = map(math.log10, (y_low, y_high, y)) if log else (y_low, y_high, y)
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    def path(name: str) -> str:
        parts, pen = [], "M"
        for x, values in points.items():
            y = values.get(name)
            if y is not None and math.isfinite(y):
                parts.append(f"{pen}{place_x(x):g} {place_y(y):g}")
                pen = "L"
            elif y is not None:
                pen = "M"
        return "".join(parts)

    texts = {
        place_x(x): [f"step {x:.0f}", *(f"{n}  {label(values[n])}" for n in names if n in values)]
        for x, values in finite.items()
        if values
    }
    return Chart(
        title=title,
        note=note + (" (log scale)" if log else ""),
        lines=[(name, path(name)) for name in names],
        x_ticks=[(place_x(x), label(x)) for x in ticks(x_low, x_high) if x_low <= x <= x_high],
        y_ticks=[(place_y(y), label(y)) for y in y_values],
        strips=_strips(texts),
        zero=place_y(0.0) if not log and y_low < 0 < y_high else None,
    )


def _widen(low: float, high: float) -> tuple[float, float]:
    """A range of at least some width."""
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: means over strips of equal width, the same strips for all lines.

    The mean of a strip skips values that are not finite; it is NaN where there is no other.
    """
    if len(points) <= most:
        return points
    low, width = min(points), (max(points) - min(points)) / most
    strips: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for x, values in points.items():
        for name, y in values.items():
            strips[min(int((x - low) / width), most - 1)][name].append(y)
    return {
        low + (i + 0.5) * width: {name: _mean(ys) for name, ys in strips[i].items()}
        for i in sorted(strips)
    }


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers 1, 2 or 5 x 10^n apart that span a range, about as many as wanted."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that span a positive range, at most about six of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    return [10.0**power for power in range(first, last + stride, stride)]


def label(value: float) -> str:
    """A short number for an axis or a tooltip."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _strips(texts: Mapping[float, list[str]]) -> list[tuple[float, float, float, list[str]]]:
    """One strip for each place with a text, reaching halfway to its neighbours."""
    xs = sorted(texts)
    edges = [LEFT, *(round((a + b) / 2, 1) for a, b in pairwise(xs)), RIGHT]
    return [(*ends, x, texts[x]) for ends, x in zip(pairwise(edges), xs, strict=True)]
