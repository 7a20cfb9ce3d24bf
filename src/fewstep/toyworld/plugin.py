"""What the tiny world adds to the open ends: a metric, real pictures, and scores of previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import (
    Figure,
    Measurements,
    Metric,
    References,
    lead,
    mean_and_error,
)
from fewstep.evaluation.metrics.diversity import pairwise_distance
from fewstep.toyworld import oracle
from fewstep.toyworld.features import World
from fewstep.toyworld.scenes import SIDE, draw_scene, parse, render
from fewstep.utils.errors import FewstepError

_world = cache(World)
ATTRIBUTES = ("color", "shape", "size", "position", "background", "clean")


class Accuracy(Metric):
    """Share of the pictures that show all that their prompts ask for, as the oracle reads them.

    A ghost is far from everything, so that pictures gone wrong pass for diversity;
    `diversity_right` therefore counts the accurate pictures only.
    """

    name = "accuracy"
    needs_features = True
    figures: ClassVar[Mapping[str, Figure]] = {
        "accuracy": Figure("Prompts right", percent=True),
        "diversity_right": Figure("Diversity, right pictures"),
        **{
            f"accuracy_{name}": Figure(name, percent=True, group="Attributes right")
            for name in ATTRIBUTES
        },
    }

    def prepare(self, prompts: Sequence[str]) -> None:
        """Refuses prompts outside the grammar of captions."""
        for prompt in prompts:
            try:
                parse(prompt)
            except ValueError as error:
                raise FewstepError(f"evaluate.metrics: accuracy cannot judge: {error}") from error

    def measure(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        """How often each attribute is asked for and how often it is right, [B, 6, 2], uint8."""
        counts = torch.zeros(len(images), len(ATTRIBUTES), 2, dtype=torch.uint8)
        for row, prompt, image in zip(counts, prompts, images.float().cpu().numpy(), strict=True):
            for name, flag in oracle.judge(parse(prompt), oracle.read(image)):
                row[ATTRIBUTES.index(name)] += torch.tensor([1, flag], dtype=torch.uint8)
        return counts

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """`accuracy`, `accuracy_<attribute>`, `diversity_right`, with errors and leads."""
        if self.name not in measurements.values:
            return {}

        def values(of: Measurements) -> tuple[Tensor, Tensor]:
            counts, points = of.values[self.name], of.features.repeated
            return accurate(counts.single), pairwise_distance(points, accurate(counts.repeated) > 0)

        right, diversity = values(measurements)
        baseline = references.baseline
        their_right, their_diversity = values(baseline) if baseline else (None, None)
        return {
            **shares(measurements.values[self.name].single),
            **lead(self.name, right, their_right),
            **mean_and_error("diversity_right", diversity),
            **lead("diversity_right", diversity, their_diversity),
        }


def shares(counts: Tensor) -> dict[str, float]:
    """`accuracy`, its error and `accuracy_<attribute>` of what `Accuracy.measure` gives."""
    asked, right = counts.double().sum(0).T
    attributes = zip(ATTRIBUTES, asked.tolist(), right.tolist(), strict=True)
    figures = mean_and_error(Accuracy.name, accurate(counts))
    return figures | {f"accuracy_{name}": hits / times for name, times, hits in attributes if times}


def accurate(counts: Tensor) -> Tensor:
    """1 where all that is asked for is right, else 0: [..., 6, 2] -> [...]."""
    return (counts[..., 0] == counts[..., 1]).all(-1).double()


class Scenes:
    """Real pictures: scenes that fit the captions; what those leave open is drawn at random."""

    paired = True

    def draw(
        self, prompts: Sequence[str], seed: int, size: tuple[int, int] = (SIDE, SIDE)
    ) -> Iterator[Tensor]:
        """One scene a prompt, 64 at a time, [64, 3, 64, 64].

        Raises:
            FewstepError: A prompt outside the grammar of captions.
        """
        rng = np.random.default_rng([seed, 1])
        for start in range(0, len(prompts), 64):
            try:
                parsed = [parse(prompt) for prompt in prompts[start : start + 64]]
            except ValueError as error:
                raise FewstepError(f"evaluate.references: scenes: {error}") from error
            yield torch.from_numpy(render([draw_scene(prompt, rng) for prompt in parsed]))


def accuracy(images: Tensor, prompts: Sequence[str], teacher_images: Tensor) -> float:
    """Share of the prompts that the pictures show in full."""
    return float(accurate(Accuracy().measure(prompts, images)).mean())


def accuracy_and_closeness(images: Tensor, prompts: Sequence[str], teacher_images: Tensor) -> float:
    """Accuracy minus the energy distance to the teacher's pictures in the world's feature space.

    Accuracy alone is content with one picture per prompt; the distance sees what is missing.
    """
    distance = energy_distance(_world()(images), _world()(teacher_images))
    return accuracy(images, prompts, teacher_images) - distance


def energy_distance(first: Tensor, second: Tensor) -> float:
    """How far two clouds lie apart, over the second one's own spread: about 0 if they are one.

    2 E|x - y| - E|x - x'| - E|y - y'| over E|y - y'| (Szekely & Rizzo 2013), with pairs of
    different samples only, so that the small sizes of previews do not bias it. The clouds are
    features [N, F] and [M, F], N and M at least 2.
    """
    x, y = first.double(), second.double()
    within_x, within_y = (torch.cdist(p, p).sum() / (len(p) * (len(p) - 1)) for p in (x, y))
    between = torch.cdist(x, y).mean()
    return float((2 * between - within_x - within_y) / within_y.clamp_min(1e-12))
