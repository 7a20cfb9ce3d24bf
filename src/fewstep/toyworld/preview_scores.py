"""Ratings of previews of the tiny world, for keeping the best checkpoint; higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.toyworld.features import features
from fewstep.toyworld.metric import judge


def accuracy(images: Tensor, prompts: Sequence[str], teacher_images: Tensor) -> float:
    """Share of the prompts that the pictures show in full."""
    verdicts = judge(prompts, images)
    return sum(all(flag for _, flag in flags) for flags in verdicts) / len(verdicts)


def accuracy_and_closeness(images: Tensor, prompts: Sequence[str], teacher_images: Tensor) -> float:
    """Accuracy minus the energy distance to the teacher's pictures in the world's feature space.

    Accuracy alone is content with one picture per prompt; the distance sees what is missing.
    """
    distance = energy_distance(features(images), features(teacher_images))
    return accuracy(images, prompts, teacher_images) - distance


def energy_distance(first: Tensor, second: Tensor) -> float:
    """How far two clouds lie apart, over the second one's own spread: about 0 if they are one.

    2 E|x - y| - E|x - x'| - E|y - y'| over E|y - y'| (Szekely & Rizzo 2013), with pairs of
    different samples only, so that the small sizes of previews do not bias it.

    Args:
        first: Features [N, F], N >= 2.
        second: Features [M, F], M >= 2.
    """
    x, y = first.double(), second.double()
    within_x, within_y = _within(x), _within(y)
    between = torch.cdist(x, y).mean()
    return float((2 * between - within_x - within_y) / within_y.clamp_min(1e-12))


def _within(points: Tensor) -> Tensor:
    return torch.cdist(points, points).sum() / (len(points) * (len(points) - 1))
