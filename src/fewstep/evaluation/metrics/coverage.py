"""Precision, recall, density and coverage by k nearest neighbours, against every reference.

Precision and recall as in Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage as in
Naeem et al. 2020 (arXiv 2002.09797).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from fewstep.evaluation.metrics.base import Figure, Measurements, Metric, References, distances

NEIGHBOURS = 5


def neighbour_scores(fake: Tensor, real: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """How well one cloud fills another; each sample owns the ball that reaches its k-th neighbour.

    Args:
        fake: Features of the samples judged, [N, F], N > k.
        real: Features of the reference, [M, F], M > k.
        k: Neighbours that a ball holds, the sample itself not counted.

    Returns:
        `precision`: share of the fakes in some real ball. `recall`: share of the reals in some fake
        ball. `density`: real balls around a fake, over k (may exceed 1). `coverage`: share of the
        real balls that hold a fake.
    """
    # The nearest neighbour of all is the point itself.
    real_radius, fake_radius = (
        distances(points, points).kthvalue(k + 1, dim=1).values for points in (real, fake)
    )
    apart = distances(real, fake)  # [M, N]
    in_real, in_fake = apart <= real_radius[:, None], apart <= fake_radius[None, :]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_fake.any(1).double().mean()),
        "density": float(in_real.sum(0).double().mean() / k),
        "coverage": float(in_real.any(1).double().mean()),
    }


class Coverage(Metric):
    """The four neighbour scores against each reference."""

    name = "coverage"
    needs_features = True
    figures: ClassVar[Mapping[str, Figure]] = {
        "recall_teacher": Figure("Recall, teacher", percent=True),
        "coverage_teacher": Figure("Coverage, teacher", percent=True),
        "coverage_real": Figure("Coverage, real", percent=True),
    }

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """`precision_teacher`, ..., and `precision_real`, ... where there are real pictures."""
        figures: dict[str, float] = {}
        ours = measurements.features.single
        for name, other in references.besides(measurements):
            theirs = other.features.single
            if min(len(ours), len(theirs)) > NEIGHBOURS:
                scores = neighbour_scores(ours, theirs)
                figures |= {f"{score}_{name}": value for score, value in scores.items()}
        return figures
