"""The tiny world's own metric: does a picture show what its prompt asks for?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

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
from fewstep.evaluation.metrics.diversity import diversity_figures, pairwise_distance
from fewstep.toyworld import oracle
from fewstep.toyworld.scenes import parse
from fewstep.utils.errors import FewstepError

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
        for row, flags in zip(counts, judge(prompts, images), strict=True):
            for name, flag in flags:
                row[ATTRIBUTES.index(name)] += torch.tensor([1, flag], dtype=torch.uint8)
        return counts

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """`accuracy`, `accuracy_<attribute>`, `diversity_right`, with errors and leads."""
        if self.name not in measurements.values:
            return {}
        counts = measurements.values[self.name].single
        figures = shares(counts)
        baseline = references.baseline
        if baseline is not None:
            theirs = _accurate(baseline.values[self.name].single)
            figures |= lead(self.name, _accurate(counts), theirs)
        other = None if baseline is None else _right_distance(baseline)
        return figures | diversity_figures("diversity_right", _right_distance(measurements), other)


def judge(prompts: Sequence[str], images: Tensor) -> list[tuple[tuple[str, bool], ...]]:
    """Attributes that each prompt asks for, and whether its picture [3, 64, 64] has them."""
    pairs = zip(prompts, images.float().cpu().numpy(), strict=True)
    return [oracle.judge(parse(prompt), oracle.read(image)).scores for prompt, image in pairs]


def shares(counts: Tensor) -> dict[str, float]:
    """`accuracy`, its error and `accuracy_<attribute>` of what `Accuracy.measure` gives."""
    asked, right = counts.double().sum(0).T
    attributes = zip(ATTRIBUTES, asked.tolist(), right.tolist(), strict=True)
    figures = mean_and_error(Accuracy.name, _accurate(counts))
    return figures | {f"accuracy_{name}": hits / times for name, times, hits in attributes if times}


def _accurate(counts: Tensor) -> Tensor:
    """1 where all that is asked for is right, else 0: [..., 6, 2] -> [...]."""
    return (counts[..., 0] == counts[..., 1]).all(-1).double()


def _right_distance(measurements: Measurements) -> Tensor:
    right = _accurate(measurements.values[Accuracy.name].repeated).bool()
    return pairwise_distance(measurements.features.repeated, right)
