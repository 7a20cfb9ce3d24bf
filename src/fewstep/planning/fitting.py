"""Settings with which a recipe fits a device, and makes use of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.config.strict import parse_override
from fewstep.planning.dry_run import gb
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import memory_items, peak
from fewstep.planning.plans import changes


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        key: Its dotted key.
        value: Its value.
        why: What it does, or costs; a few words.
    """

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Fit:
    """What was chosen for a device.

    Attributes:
        choices: The settings, besides the recipe's own.
        bytes: Memory at the fullest moment with them.
        fits: Whether that is within the device's room.
    """

    choices: tuple[Choice, ...]
    bytes: int
    fits: bool


def fit(estimate: Estimate, room: int) -> Fit:
    """Settings in which a recipe fits one device.

    It starts from one sample at a time. Where that is too much, settings are taken in the order of
    what they cost, see `plans.changes`; where there is room, more samples are worked on at a time.

    Args:
        estimate: What the recipe takes as it is.
        room: Bytes that the device has.
    """
    batch, chosen = estimate.recipe.data.batch_size, []
    estimate = estimate.variant({"data.accumulate": batch})
    size = peak(memory_items(estimate))
    if size > room and (needed := list(changes(estimate, room))):
        chosen = [Choice(*parse_override(text), c.price) for c in needed for text in c.settings]
        estimate = estimate.variant({choice.key: choice.value for choice in chosen})
        size = needed[-1].bytes
    samples, more = 1, ""
    for wanted in _doubled(batch) if size <= room else ():
        larger = peak(memory_items(estimate.variant({"data.accumulate": batch // wanted})))
        if larger > room:
            more = f"; {wanted} would take {gb(larger)} GB"
            break
        samples, size = wanted, larger
    why = f"{samples} of the batch at a time, with the same gradient{more}"
    return Fit((Choice("data.accumulate", batch // samples, why), *chosen), size, size <= room)


def _doubled(batch: int) -> Sequence[int]:
    """2, 4, ... as far as they divide a batch."""
    return [2**n for n in range(1, batch.bit_length()) if batch % 2**n == 0]
