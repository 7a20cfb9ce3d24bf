"""Line charts as geometry: the template draws what is worked out here, without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 26
MOST_POINTS = 160  # per line; more are averaged, as a screen cannot show them
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line: a name and its points, in order of x. Values that are not finite leave a gap."""

    name: str
    points: Points


@dataclass(frozen=True)
class Mark:
    """A value on a line, in pixels, with the text that hovering shows."""

    x: float
    y: float
    text: str
    series: int


@dataclass(frozen=True)
class Hover:
    """A strip of the chart, and the marks shown while the pointer is over it."""

    left: float
    width: float
    x: float
    title: str
    marks: tuple[Mark, ...]
    flip: bool


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one chart, in pixels of the view box."""

    title: str
    note: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    hovers: tuple[Hover, ...]
    zero: float | None = None
    width: int = WIDTH
    height: int = HEIGHT
    box: tuple[int, int, int, int] = field(
        default=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    )  # left, top, right, bottom


def line_chart(
    title: str, series: Sequence[Series], note: str = "", *, may_log: bool = True
) -> Chart | None:
    """Chart of some lines over a common x; None where no line has a finite point.

    The y axis is logarithmic, if it may be, where all values are positive and span more than two
    decades.
    """
    lines = [one for one in thin(series) if any(math.isfinite(y) for _, y in one.points)]
    if not lines:
        return None
    xs = [x for one in lines for x, _ in one.points]
    ys = [y for one in lines for _, y in one.points if math.isfinite(y)]
    log = may_log and min(ys) > 0 and max(ys) / min(ys) > 100
    x_low, x_high = _widen(min(xs), max(xs))
    y_values = log_ticks(min(ys), max(ys)) if log else ticks(*_widen(min(ys), max(ys)))
    y_low, y_high = min(*y_values, *ys), max(*y_values, *ys)

    def place_x(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        low, high, value = map(math.log10, (y_low, y_high, y)) if log else (y_low, y_high, y)
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    placed = [
        [(place_x(x), place_y(y) if math.isfinite(y) else None) for x, y in one.points]
        for one in lines
    ]
    return Chart(
        title=title,
        note=note + (" (log scale)" if log else ""),
        names=tuple(one.name for one in lines),
        paths=tuple(map(_path, placed)),
        x_ticks=tuple((place_x(x), label(x)) for x in ticks(x_low, x_high) if x_low <= x <= x_high),
        y_ticks=tuple((place_y(y), label(y)) for y in y_values),
        hovers=_hovers(lines, placed),
        zero=place_y(0.0) if not log and y_low < 0 < y_high else None,
    )


def _widen(low: float, high: float) -> tuple[float, float]:
    """A range of at least some width."""
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def thin(lines: Sequence[Series], most: int = MOST_POINTS) -> list[Series]:
    """The lines with at most so many points each: means over strips of equal width.

    The strips are the same for all lines, so that their points stay above one another. The mean of
    a strip skips values that are not finite.
    """
    if all(len(line.points) <= most for line in lines):
        return list(lines)
    xs = [x for line in lines for x, _ in line.points]
    low, width = min(xs), (max(xs) - min(xs)) / most or 1.0
    thinned = []
    for line in lines:
        strips: dict[int, list[float]] = {}
        for x, y in line.points:
            strips.setdefault(min(int((x - low) / width), most - 1), []).append(y)
        points = [(low + (i + 0.5) * width, _mean(strips[i])) for i in sorted(strips)]
        thinned.append(Series(line.name, points))
    return thinned


def _mean(values: Sequence[float]) -> float:
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


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:g} {y:g}")
        pen = "L"
    return "".join(parts)


def _hovers(
    lines: Sequence[Series], placed: Sequence[Sequence[tuple[float, float | None]]]
) -> tuple[Hover, ...]:
    """One strip per x at which any line has a value, reaching halfway to its neighbours."""
    marks: dict[float, tuple[str, list[Mark]]] = {}
    for index, (line, spots) in enumerate(zip(lines, placed, strict=True)):
        for (x, y), (px, py) in zip(line.points, spots, strict=True):
            if py is not None:
                text = f"{line.name}  {label(y)}" if len(lines) > 1 else label(y)
                entry = marks.setdefault(px, (f"step {x:.0f}", []))
                entry[1].append(Mark(px, py, text, index))
    xs = sorted(marks)
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(xs)), WIDTH - RIGHT]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return tuple(
        Hover(
            left=round(edges[i], 1),
            width=round(edges[i + 1] - edges[i], 1),
            x=x,
            title=marks[x][0],
            marks=tuple(marks[x][1]),
            flip=x > middle,
        )
        for i, x in enumerate(xs)
    )
