"""Bars: what a run has to reach, each a figure and a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EVALUATIONS = 4  # a picture: what the student is distilled for
MINUTES, GIGABYTES = 12.0, 4.0
RIGHT_LOSS = 0.02  # prompts right may fall this far below the guided teacher's
FRECHET_RATIO = 1.25
DIVERSITY_RATIO = 0.8
CLEARLY = 2.0  # standard errors of the difference over the same prompts
CLEARLY_RATIO = 0.8  # of the rival's Frechet distance
_SPREAD = {  # scores that may stand for diversity, as people read them
    "diversity": "diversity within a prompt",
    "diversity_right": "diversity within a prompt's right pictures",
}


@dataclass(frozen=True)
class Bar:
    """One demand. Where the value or the threshold was not measured, the bar is not met.

    Attributes:
        name: Short and stable, for summary.json.
        label: The same for people.
        value: What was measured.
        threshold: What it is compared with.
        at_most: Whether smaller is better.
    """

    name: str
    label: str
    value: float | None
    threshold: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side."""
        if self.value is None or self.threshold is None:
            return False
        return self.value <= self.threshold if self.at_most else self.value >= self.threshold

    def row(self) -> dict[str, Any]:
        """What summary.json holds of it."""
        return {
            "name": self.name,
            "label": self.label,
            "value": self.value,
            "relation": "<=" if self.at_most else ">=",
            "threshold": self.threshold,
            "met": self.met,
        }


def bars(
    evaluation: Mapping[str, Any], *, minutes: float | None = None, gigabytes: float | None = None
) -> list[Bar]:
    """The bars of a run.

    The student at 4 evaluations a picture is held against the teacher with the most (the
    reference) and against the guided teacher at as many steps (the rival). Without a ground truth
    only the bars on time, memory and diversity stand; with one, diversity is that of the pictures
    that show their prompt.

    Args:
        evaluation: What evaluation.json holds.
        minutes: Duration of the whole run, from nothing to the report.
        gigabytes: Its peak resident memory.
    """
    student, reference, rival = _contestants(evaluation["arms"])
    spread = "diversity" if evaluation.get("truth") is None else "diversity_right"
    found = [
        Bar("minutes", "whole run, minutes", minutes, MINUTES, at_most=True),
        Bar("gigabytes", "peak resident memory, GB", gigabytes, GIGABYTES, at_most=True),
        *_against_reference(student, reference, spread),
        *_against_rival(student, rival, spread),
    ]
    kept = set(_WITHOUT_TRUTH) if evaluation.get("truth") is None else None
    return [bar for bar in found if kept is None or bar.name in kept]


_WITHOUT_TRUTH = ("minutes", "gigabytes", "diversity", "diversity_ahead")


@dataclass(frozen=True)
class _Contestant:
    """An arm's figures; those of an arm that was not evaluated are all missing."""

    name: str
    scores: Mapping[str, float]

    def get(self, score: str) -> float | None:
        return self.scores.get(score)

    def times(self, score: str, factor: float) -> float | None:
        value = self.get(score)
        return None if value is None else round(value * factor, 6)


def _contestants(
    arms: Sequence[Mapping[str, Any]],
) -> tuple[_Contestant, _Contestant, _Contestant]:
    students = [
        arm for arm in arms if arm["model"] == "student" and arm["evaluations"] == EVALUATIONS
    ]
    teachers = [arm for arm in arms if arm["model"] == "teacher"]
    rivals = [arm for arm in arms if is_rival(arm, EVALUATIONS)]
    reference = max(teachers, key=lambda arm: arm["evaluations"], default=None)
    return (
        _contestant(students[0] if students else None, "student"),
        _contestant(reference, "the teacher"),
        _contestant(rivals[0] if rivals else None, f"the guided teacher at {EVALUATIONS} steps"),
    )


def is_rival(arm: Mapping[str, Any], steps: int) -> bool:
    """Whether an arm is what a student of so many steps has to beat: the teacher, guided.

    On its own grid, which is how the model is used.
    """
    guided = arm["model"] == "teacher" and arm["guidance"] != 1.0
    return bool(guided and arm["steps"] == steps and arm.get("own_shift", True))


def _contestant(arm: Mapping[str, Any] | None, name: str) -> _Contestant:
    return _Contestant(arm["name"], arm["scores"]) if arm else _Contestant(name, {})


def _against_reference(student: _Contestant, teacher: _Contestant, spread: str) -> Iterator[Bar]:
    right = teacher.get("right")
    yield Bar(
        "right",
        f"prompts right, at least {teacher.name} minus {RIGHT_LOSS * 100:.0f} points",
        student.get("right"),
        None if right is None else round(right - RIGHT_LOSS, 6),
    )
    yield Bar(
        "frechet_real",
        f"Frechet distance to real pictures, at most {FRECHET_RATIO} x {teacher.name}",
        student.get("frechet_real"),
        teacher.times("frechet_real", FRECHET_RATIO),
        at_most=True,
    )
    yield Bar(
        "diversity",
        f"{_SPREAD[spread]}, at least {DIVERSITY_RATIO} x {teacher.name}",
        student.get(spread),
        teacher.times(spread, DIVERSITY_RATIO),
    )


def _against_rival(student: _Contestant, rival: _Contestant, spread: str) -> Iterator[Bar]:
    """Clearly ahead: by two standard errors of the difference; in Frechet distance, by a fifth."""
    errors = f"{CLEARLY:.0f} standard errors above {rival.name}"
    yield Bar(
        "right_ahead",
        f"prompts right, {errors}",
        student.get("right"),
        _beyond(student, "right"),
    )
    yield Bar(
        "frechet_real_ahead",
        f"Frechet distance to real pictures, at most {CLEARLY_RATIO} x {rival.name}",
        student.get("frechet_real"),
        rival.times("frechet_real", CLEARLY_RATIO),
        at_most=True,
    )
    yield Bar(
        "diversity_ahead",
        f"{_SPREAD[spread]}, {errors}",
        student.get(spread),
        _beyond(student, spread),
    )


def _beyond(student: _Contestant, score: str) -> float | None:
    """The rival's figure plus some standard errors of the difference, prompt by prompt.

    The rival's on the prompts that both have a value for, which may be fewer than all of its own.
    """
    value, ahead = student.get(score), student.get(f"ahead_{score}")
    error = student.get(f"ahead_{score}_error")
    if value is None or ahead is None or error is None:
        return None
    return round(value - ahead + CLEARLY * error, 6)
