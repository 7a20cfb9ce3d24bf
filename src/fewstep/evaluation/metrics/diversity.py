"""Diversity within a prompt: how far apart the pictures of one prompt are, over several seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import Measurements, References, ahead, mean_and_error


def pairwise_distance(features: Tensor, shown: Tensor | None = None) -> Tensor:
    """Mean Euclidean distance over pairs of one prompt's pictures.

    Args:
        features: K pictures of each of M prompts [M, K, F].
        shown: Which of them count [M, K], bool; None: all.

    Returns:
        A mean for every prompt [M]; nan where no two of its pictures count.
    """
    seeds = features.shape[1]
    distances = torch.cdist(
        features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    counted = torch.ones(features.shape[:2], dtype=torch.bool) if shown is None else shown
    pairs = counted[:, :, None] & counted[:, None, :] & ~torch.eye(seeds, dtype=torch.bool)
    return (distances * pairs).sum((1, 2)) / pairs.sum((1, 2))


class Diversity:
    """Mean over prompts of the mean pairwise feature distance, with its standard error.

    A ghost is far from everything, so that pictures gone wrong pass for diversity. Where a ground
    truth tells which pictures show their prompt, `diversity_right` therefore counts only those.
    """

    name = "diversity"
    needs_truth = False

    def __call__(self, configuration: Measurements, references: References) -> dict[str, float]:
        """`diversity`, `diversity_right`, their errors and leads over the baseline.

        Nothing where no two prompts have two pictures that count.
        """
        baseline = references.baseline
        figures = _figures(
            "diversity", _spread(configuration), None if baseline is None else _spread(baseline)
        )
        if configuration.shown is not None:
            theirs = None if baseline is None else _spread(baseline, right=True)
            figures |= _figures("diversity_right", _spread(configuration, right=True), theirs)
        return figures


def _spread(configuration: Measurements, *, right: bool = False) -> Tensor:
    return pairwise_distance(configuration.repeated, configuration.shown if right else None)


def _figures(name: str, ours: Tensor, theirs: Tensor | None) -> dict[str, float]:
    known = ~ours.isnan()
    figures = mean_and_error(name, ours[known]) if known.sum() > 1 else {}
    both = known if theirs is None else known & ~theirs.isnan()
    if theirs is not None and both.sum() > 1:
        figures |= ahead(name, ours[both], theirs[both])
    return figures


SCORE = Diversity()
