"""Means over everything but the batch, and what to do with the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import Tensor

from fewstep.errors import unknown

Reduction: TypeAlias = Literal["mean", "none"]


def per_sample(values: Tensor) -> Tensor:
    """Mean over all axes but the first: [B, ...] -> [B]."""
    return values.flatten(1).mean(1)


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Losses [B] as they are (``none``), or their mean, a scalar (``mean``).

    Raises:
        FewstepError: The reduction is neither of the two.
    """
    if reduction not in _REDUCTIONS:
        raise unknown("reduction", reduction, _REDUCTIONS)
    return _REDUCTIONS[reduction](losses)


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda losses: losses.mean(),
    "none": lambda losses: losses,
}
