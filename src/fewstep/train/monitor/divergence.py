"""Whether a run is coming apart, judged by its own history.

Losses of distillation say nothing of it: they compare two moving networks. Looked at instead are

- the health figures, against the untrained student's at the run's start: how widely latents
  spread, how far their mean has moved, and how much worse the fake teacher predicts what the
  student draws. A figure beyond its bound is told at once and stays told until it is well within
  again (`_BACK`), so that figures that swing about a bound are told once;
- gradient norms, the fake teacher's loss and the normalisers k, step by step: the median of the
  last `RECENT` values against median and MAD (median absolute deviation) of up to `WINDOW` values
  before, all as logarithms, as such figures vary by factors. A single outlier moves neither;
- the fake teacher's loss itself. What it predicts, noise minus latents, has a variance near 2:
  a larger loss is worse than predicting nothing.

Some bounds have a second one further out, beyond which the student is past saving. What sound and
unsound runs measured, and why these bounds: docs/notebook/2026-11-26-runs-that-diverge.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

RECENT, WINDOW = 8, 64
"""Steps that are judged, and steps before them that they are compared with."""
_ENOUGH = 16  # steps before, from which on there is something to compare with
_TIMES, _MADS = 8.0, 6.0  # both must be passed: a factor, and deviations of a normal distribution
_NORMAL = 1.4826  # standard deviation of a normal distribution, in MADs
_BACK = 0.8  # share of a bound's logarithm that a figure must come back within
_SERIES = ("grad_norm/", "k/", "loss/fake_teacher")
_FAKE = "loss/fake_teacher"
ADVICE = (
    "try student.optimizer.lr and fake_teacher.optimizer.lr at a third or less, less guidance, or "
    "more fake_teacher.updates"
)


class Bound(NamedTuple):
    """How large a factor may become: told beyond `warn`, past saving beyond `lost`."""

    warn: float
    lost: float


SPREAD = Bound(2.0, 4.0)
"""Of the latents' standard deviation to the teacher's, or its inverse."""
DRIFT = Bound(0.5, 3.0)
"""Of the latents' mean from the teacher's, in standard deviations of the teacher's."""
GROWTH = Bound(4.0, 40.0)
"""Of the fake teacher's error on what the student draws, to that at the start: geometric mean over
noise levels."""
NOTHING = Bound(4.0, 40.0)
"""Of the fake teacher's loss, median of `RECENT` steps; about 2 is predicting nothing."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a run.

    Attributes:
        reason: In words; empty if it is sound.
        lost: Whether the student is past saving.
        sound_until: Step up to which the run was sound, as far as its figures say; None where
            nothing is wrong.
        news: What was not said before, in words; empty if nothing.
    """

    reason: str = ""
    lost: bool = False
    sound_until: int | None = None
    news: str = ""


class _Finding(NamedTuple):
    text: str
    lost: bool
    sound_until: int


class Divergence:
    """Judges a run step by step; the same figures give the same verdicts, also after a resume."""

    def __init__(self) -> None:
        """Knows of no step yet."""
        self._step = 0
        self._measured = 0  # the step of the last health figures
        self._start: dict[str, float] = {}
        self._values: dict[str, list[float]] = {}
        self._found: dict[str, _Finding] = {}

    @property
    def verdict(self) -> Verdict:
        """On the run as it is, without news."""
        found = sorted(self._found.values(), key=lambda each: not each.lost)
        if not found:
            return Verdict()
        until = min(each.sound_until for each in found)
        return Verdict("; ".join(each.text for each in found), found[0].lost, until)

    def see(self, step: int, metrics: Mapping[str, float]) -> Verdict:
        """Takes the figures of a step, in order; returns what is wrong now."""
        self._step, before = step, dict(self._found)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics.keys() - finite.keys():
            if name.startswith(("health/", *_SERIES)):
                text = f"{name} is {metrics[name]}"
                self._find(name, math.inf, SPREAD, text, since=self._measured)
        health = {name: value for name, value in finite.items() if name.startswith("health/")}
        if health:
            self._see_health(health)
            self._measured = step
        for name, value in finite.items():
            if name.startswith(_SERIES):
                self._see_series(name, value)
        new = [
            each.text
            for key, each in self._found.items()
            if key not in before or (each.lost and not before[key].lost)
        ]
        if before and not self._found:
            new = ["all figures are back within their bounds"]
        return replace(self.verdict, news="; ".join(new))

    def state(self) -> dict[str, Any]:
        """All that later verdicts depend on, as JSON holds it."""
        found = {key: list(each) for key, each in self._found.items()}
        return {
            "start": self._start,
            "values": self._values,
            "found": found,
            "measured": self._measured,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self._start = dict(state["start"])
        self._values = {name: list(values) for name, values in state["values"].items()}
        self._found = {key: _Finding(*each) for key, each in state["found"].items()}
        self._measured = state["measured"]

    def _find(self, key: str, factor: float, bound: Bound, text: str, *, since: int) -> None:
        """Notes a factor beyond its bound; strikes it off when it is well within again."""
        back = bound.warn**_BACK if bound.warn > 1 else bound.warn * _BACK
        if factor <= (back if key in self._found else bound.warn):
            self._found.pop(key, None)
            return
        until = self._found[key].sound_until if key in self._found else since
        self._found[key] = _Finding(text, factor > bound.lost, until)

    def _see_health(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._start.setdefault(name, value)
        since = self._measured
        if (ratio := figures.get("health/std_ratio")) is not None:
            word = "over-baked" if ratio > 1 else "washed out"
            text = f"latents spread {ratio:.3g} times as widely as the teacher's ({word})"
            self._find("spread", max(ratio, 1 / max(ratio, 1e-9)), SPREAD, text, since=since)
        if (drift := figures.get("health/mean_drift")) is not None:
            text = (
                f"the mean of latents is {drift:+.3g} of the teacher's standard deviations off (a "
                "cast of brightness or colour)"
            )
            self._find("drift", abs(drift), DRIFT, text, since=since)
        growths = [
            value / self._start[name]
            for name, value in figures.items()
            if name.startswith("health/fake_teacher_loss@") and min(value, self._start[name]) > 0
        ]
        if growths:
            growth = math.exp(sum(map(math.log, growths)) / len(growths))
            text = (
                f"the fake teacher predicts what the student draws {growth:.3g} times worse than "
                "at the start, it cannot keep up"
            )
            self._find("growth", growth, GROWTH, text, since=since)

    def _see_series(self, name: str, value: float) -> None:
        values, since = self._values.setdefault(name, []), max(self._step - RECENT // 2, 0)
        values.append(value)
        del values[: -RECENT - WINDOW]
        recent = median(values[-RECENT:])
        if name == _FAKE and len(values) >= RECENT:
            text = f"the fake teacher's loss is {recent:.3g}: about 2 is predicting nothing"
            self._find("nothing", recent, NOTHING, text, since=since)
        before = [_log(each) for each in values[:-RECENT]]
        if len(before) < _ENOUGH:
            return
        usual = median(before)
        deviation = _NORMAL * median(abs(each - usual) for each in before)
        times = math.exp(_log(recent) - usual)
        bound = Bound(math.exp(min(max(math.log(_TIMES), _MADS * deviation), 99)), math.inf)
        self._find(name, times, bound, f"{name} is {times:.3g} times what it was", since=since)


def _log(value: float) -> float:
    """Logarithm of a figure, within what ordinary numbers of the program can be."""
    return math.log(min(max(value, 1e-30), 1e30))
