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
CLEARLY_RATIO = 0.8  # of the baseline's Frechet distance
_SPREAD = {  # scores that may stand for diversity, as people read them
    "diversity": "diversity within a prompt",
    "diversity_right": "diversity within a prompt's right pictures",
}


@dataclass(frozen=True)
class Criterion:
    """One demand. Where the value or the threshold was not measured, the criterion is not met.

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


def criteria(
    evaluation: Mapping[str, Any], *, minutes: float | None = None, gigabytes: float | None = None
) -> list[Criterion]:
    """The criteria of a run.

    The student at 4 evaluations a picture is held against the teacher with the most (the
    reference) and against the guided teacher at as many steps (the baseline). Without a ground
    truth
    only the criteria on time, memory and diversity stand; with one, diversity is that of the
    pictures
    that show their prompt.

    Args:
        evaluation: What evaluation.json holds.
        minutes: Duration of the whole run, from nothing to the report.
        gigabytes: Its peak resident memory.
    """
    student, reference, baseline = _contestants(evaluation["configurations"])
    spread = "diversity" if evaluation.get("truth") is None else "diversity_right"
    found = [
        Criterion("minutes", "whole run, minutes", minutes, MINUTES, at_most=True),
        Criterion("gigabytes", "peak resident memory, GB", gigabytes, GIGABYTES, at_most=True),
        *_against_reference(student, reference, spread),
        *_against_baseline(student, baseline, spread),
    ]
    kept = set(_WITHOUT_TRUTH) if evaluation.get("truth") is None else None
    return [criterion for criterion in found if kept is None or criterion.name in kept]


_WITHOUT_TRUTH = ("minutes", "gigabytes", "diversity", "diversity_ahead")


@dataclass(frozen=True)
class _Contestant:
    """An configuration's figures; all missing where it was not evaluated."""

    name: str
    scores: Mapping[str, float]

    def get(self, score: str) -> float | None:
        return self.scores.get(score)

    def times(self, score: str, factor: float) -> float | None:
        value = self.get(score)
        return None if value is None else round(value * factor, 6)


def _contestants(
    configurations: Sequence[Mapping[str, Any]],
) -> tuple[_Contestant, _Contestant, _Contestant]:
    students = [
        configuration
        for configuration in configurations
        if configuration["model"] == "student" and configuration["evaluations"] == EVALUATIONS
    ]
    teachers = [
        configuration for configuration in configurations if configuration["model"] == "teacher"
    ]
    rivals = [
        configuration for configuration in configurations if is_baseline(configuration, EVALUATIONS)
    ]
    reference = max(teachers, key=lambda configuration: configuration["evaluations"], default=None)
    return (
        _contestant(students[0] if students else None, "student"),
        _contestant(reference, "the teacher"),
        _contestant(rivals[0] if rivals else None, f"the guided teacher at {EVALUATIONS} steps"),
    )


def is_baseline(configuration: Mapping[str, Any], steps: int) -> bool:
    """Whether an configuration is what a student of so many steps has to beat: the teacher, guided.

    On its own grid, which is how the model is used.
    """
    guided = configuration["model"] == "teacher" and configuration["guidance"] != 1.0
    return bool(guided and configuration["steps"] == steps and configuration.get("own_shift", True))


def _contestant(configuration: Mapping[str, Any] | None, name: str) -> _Contestant:
    return (
        _Contestant(configuration["name"], configuration["scores"])
        if configuration
        else _Contestant(name, {})
    )


def _against_reference(
    student: _Contestant, teacher: _Contestant, spread: str
) -> Iterator[Criterion]:
    right = teacher.get("right")
    yield Criterion(
        "right",
        f"prompts right, at least {teacher.name} minus {RIGHT_LOSS * 100:.0f} points",
        student.get("right"),
        None if right is None else round(right - RIGHT_LOSS, 6),
    )
    yield Criterion(
        "frechet_real",
        f"Frechet distance to real pictures, at most {FRECHET_RATIO} x {teacher.name}",
        student.get("frechet_real"),
        teacher.times("frechet_real", FRECHET_RATIO),
        at_most=True,
    )
    yield Criterion(
        "diversity",
        f"{_SPREAD[spread]}, at least {DIVERSITY_RATIO} x {teacher.name}",
        student.get(spread),
        teacher.times(spread, DIVERSITY_RATIO),
    )


def _against_baseline(
    student: _Contestant, baseline: _Contestant, spread: str
) -> Iterator[Criterion]:
    """Clearly ahead: by two standard errors of the difference; in Frechet distance, by a fifth."""
    errors = f"{CLEARLY:.0f} standard errors above {baseline.name}"
    yield Criterion(
        "right_ahead",
        f"prompts right, {errors}",
        student.get("right"),
        _beyond(student, "right"),
    )
    yield Criterion(
        "frechet_real_ahead",
        f"Frechet distance to real pictures, at most {CLEARLY_RATIO} x {baseline.name}",
        student.get("frechet_real"),
        baseline.times("frechet_real", CLEARLY_RATIO),
        at_most=True,
    )
    yield Criterion(
        "diversity_ahead",
        f"{_SPREAD[spread]}, {errors}",
        student.get(spread),
        _beyond(student, spread),
    )


def _beyond(student: _Contestant, score: str) -> float | None:
    """The baseline's figure plus some standard errors of the difference, prompt by prompt.

    The baseline's on the prompts that both have a value for, which may be fewer than all of its
    own.
    """
    value, ahead = student.get(score), student.get(f"ahead_{score}")
    error = student.get(f"ahead_{score}_error")
    if value is None or ahead is None or error is None:
        return None
    return round(value - ahead + CLEARLY * error, 6)
