"""Cheap ratings of a preview during training, for keeping the best checkpoint; higher is better.

Each is called as `score(images, prompts, reference_images)`: the student's pictures [B, 3, H, W] in
[0, 1], their prompts, and the teacher's pictures of the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fewstep.evaluation import features, oracles
from fewstep.evaluation.metrics.oracle import share
from fewstep.utils.errors import unknown

PreviewScore: TypeAlias = Callable[[Tensor, Sequence[str], Tensor], float]


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


def closeness(images: Tensor, prompts: Sequence[str], reference_images: Tensor) -> float:
    """Minus the energy distance to the teacher's pictures, by coarse colours: for any model."""
    return -_apart("pixels", images, reference_images)


def right(images: Tensor, prompts: Sequence[str], reference_images: Tensor) -> float:
    """Share of the tiny world's prompts that the pictures show in full."""
    verdicts = oracles.load("scenes").judge(prompts, images)
    return share(all(flag for _, flag in verdict) for verdict in verdicts)[0]


def right_and_close(images: Tensor, prompts: Sequence[str], reference_images: Tensor) -> float:
    """Share of the tiny world's prompts right minus the energy distance to the teacher's pictures.

    The share alone is content with one picture per prompt; the distance sees what is missing.
    """
    return right(images, prompts, reference_images) - _apart("world", images, reference_images)


def _apart(space: str, images: Tensor, reference: Tensor) -> float:
    found = features.load(space)
    return energy_distance(features.extract(found, images), features.extract(found, reference))


_SCORES: dict[str, PreviewScore] = {
    score.__name__: score for score in (closeness, right, right_and_close)
}


def preview_score(name: str) -> PreviewScore:
    """The rating of this name: `closeness`, `right` or `right_and_close`.

    Raises:
        FewstepError: No such rating; the nearest name is given.
    """
    if name not in _SCORES:
        raise unknown("preview score", name, _SCORES)
    return _SCORES[name]
