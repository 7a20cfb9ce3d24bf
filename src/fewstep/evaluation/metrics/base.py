"""What a score sees, what a score is, and how scores are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, TypeAlias

from torch import Tensor

import fewstep.evaluation.metrics as package
from fewstep.utils.errors import unknown

Verdict: TypeAlias = tuple[tuple[str, bool], ...]
"""One flag per attribute that the prompt asks for; a name may come twice (two colours)."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was read off one configuration's pictures; the pictures themselves are not kept.

    Attributes:
        single: Features of one picture for each of N prompts, [N, F].
        repeated: Features of K pictures for each of the first M prompts, [M, K, F].
        verdicts: What the ground truth says of each of the N pictures; None without one.
        shown: Which of the repeated pictures show all of their prompt, [M, K], bool; None likewise.
    """

    single: Tensor
    repeated: Tensor
    verdicts: tuple[Verdict, ...] | None = None
    shown: Tensor | None = None


@dataclass(frozen=True, eq=False)
class References:
    """Pictures to compare with.

    Attributes:
        named: By name: `teacher`, and `real` where the truth can draw them.
        baseline: The guided teacher at as many steps as the configuration, which a student has to
        beat.
    """

    named: Mapping[str, Measurements] = field(default_factory=dict)
    baseline: Measurements | None = None

    def besides(self, configuration: Measurements) -> Iterator[tuple[str, Measurements]]:
        """All references but the configuration itself: a distance to oneself says nothing."""
        return ((name, other) for name, other in self.named.items() if other is not configuration)


def mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    """Mean of independent values [N] as `name`, its standard error as `<name>_error`."""
    error = values.std() / len(values) ** 0.5
    return {name: float(values.mean()), f"{name}_error": float(error)}


def ahead(score: str, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """By how much one configuration's mean exceeds another's, with the error of that difference.

    Both configurations draw the same prompts from the same noise, so the error is that of paired
    values:
    what makes one prompt harder than the next cancels.

    Args:
        score: Its name.
        ours: Its value for every prompt [N].
        theirs: The same of the other configuration [N].

    Returns:
        `ahead_<score>` and `ahead_<score>_error`.
    """
    return mean_and_error(f"ahead_{score}", ours.double() - theirs.double())


class Score(Protocol):
    """One file of this package with a module-level `SCORE`.

    Attributes:
        name: What recipes call it.
        needs_truth: Whether it says anything without a ground truth that judges pictures.
    """

    name: str
    needs_truth: bool

    def __call__(self, configuration: Measurements, references: References) -> dict[str, float]:
        """Figures of one configuration, by name."""
        ...


@cache
def _found() -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for info in pkgutil.iter_modules(package.__path__):
        score = getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "SCORE", None)
        if score is not None:
            scores[score.name] = score
    return scores


def available() -> list[str]:
    """Names of all scores, sorted."""
    return sorted(_found())


def build(names: Sequence[str]) -> list[Score]:
    """The scores of these names, in this order.

    Raises:
        FewstepError: A name that no score has; the nearest one is named.
    """
    found = _found()
    for name in names:
        if name not in found:
            raise unknown("score", name, found)
    return [found[name] for name in names]
