"""Diversity within a prompt: how far apart the pictures of one prompt are, over several seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.evaluate.base import Readings, References, ahead, mean_and_error


def pairwise_distance(features: Tensor) -> Tensor:
    """Mean Euclidean distance over all pairs of seeds, per prompt: [M, K, F] -> [M], K >= 2."""
    seeds = features.shape[1]
    distances = torch.cdist(
        features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.sum((1, 2)) / (seeds * (seeds - 1))


class Diversity:
    """Mean over prompts of the mean pairwise feature distance, with its standard error."""

    name = "diversity"
    needs_truth = False

    def __call__(self, arm: Readings, references: References) -> dict[str, float]:
        """`diversity`, its error, and by how much it is ahead of the rival's.

        Nothing where no prompt was drawn twice.
        """
        if arm.repeated.shape[0] < 2 or arm.repeated.shape[1] < 2:
            return {}
        spread = pairwise_distance(arm.repeated)
        figures = mean_and_error("diversity", spread)
        if references.rival is not None:
            figures |= ahead("diversity", spread, pairwise_distance(references.rival.repeated))
        return figures


SCORE = Diversity()
