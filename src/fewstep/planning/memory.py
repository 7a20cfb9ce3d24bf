"""What is in memory while training: an item, and bytes of numbers of each kind."""

from __future__ import annotations

from dataclasses import dataclass

MASTER = 4
"""Bytes of a trained weight, a gradient, a moment, an averaged weight: float32."""
WIDTHS = {"float32": 4, "bfloat16": 2}
BASES = {"int8": 1.0, "fp8": 1.0, "nf4": 1 / 2 + 1 / 64}
"""Bytes of a weight of the frozen base, scales included."""
MOMENTS = {"adamw": 4.0, "adamw8bit": 1 + 4 / 256, "adamwfp8": 1 + 4 / 256}
"""Bytes of a number of an optimizer's moments, scales included."""


@dataclass(frozen=True)
class Item:
    """One thing in memory.

    Attributes:
        name: What it is.
        size: In bytes.
        made_of: How the size comes about.
        counts: Whether it is there while training.
        before: Whether it is there while prompts are encoded ahead; the networks come later.
    """

    name: str
    size: int
    made_of: str
    counts: bool = True
    before: bool = False


def peak(items: tuple[Item, ...] | list[Item]) -> int:
    """Bytes of all that is there at the fullest moment, while training or before."""
    training = sum(item.size for item in items if item.counts)
    return max(training, sum(item.size for item in items if item.before))
