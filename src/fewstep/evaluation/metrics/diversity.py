"""Diversity within a prompt: how far apart the pictures of one prompt are, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import (
    Figure,
    Measurements,
    Metric,
    References,
    distances,
    lead,
    mean_and_error,
)


def pairwise_distance(features: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean Euclidean distance over pairs of one prompt's pictures.

    Args:
        features: K pictures of each of M prompts [M, K, F].
        counted: Which of them count [M, K], bool; None: all.

    Returns:
        A mean for every prompt [M]; nan where no two of its pictures count.
    """
    counts = torch.ones(features.shape[:2], dtype=torch.bool) if counted is None else counted
    others = ~torch.eye(features.shape[1], dtype=torch.bool)
    pairs = counts[:, :, None] & counts[:, None, :] & others
    return (distances(features, features) * pairs).sum((1, 2)) / pairs.sum((1, 2))


class Diversity(Metric):
    """Mean over prompts of the mean pairwise feature distance."""

    name = "diversity"
    needs_features = True
    figures: ClassVar[Mapping[str, Figure]] = {"diversity": Figure("Diversity in a prompt")}

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """`diversity`, its standard error and its lead over the baseline."""
        baseline = references.baseline
        ours = pairwise_distance(measurements.features.repeated)
        theirs = pairwise_distance(baseline.features.repeated) if baseline else None
        return mean_and_error(self.name, ours) | lead(self.name, ours, theirs)
