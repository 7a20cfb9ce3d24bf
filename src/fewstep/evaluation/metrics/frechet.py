"""Frechet distance between feature clouds: to real pictures and to the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import Figure, Measurements, Metric, References


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two clouds (Dowson & Landau 1982).

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)``, in float64: the formula of FID, for
    features [N, F] and [M, F] of whatever space, N and M at least 2.
    """
    a, b = first.double(), second.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(mean + cov_a.trace() + cov_b.trace() - 2 * inner))


class Frechet(Metric):
    """Distance to every reference there is; 0 is equal mean and covariance."""

    name = "frechet"
    higher_is_better = False
    needs_features = True
    figures: ClassVar[Mapping[str, Figure]] = {
        "frechet_real": Figure("Frechet, real", False),
        "frechet_teacher": Figure("Frechet, teacher", False),
    }

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """`frechet_teacher`, and `frechet_real` where there are real pictures."""
        ours = measurements.features.single
        return {
            f"frechet_{name}": frechet_distance(ours, other.features.single)
            for name, other in references.besides(measurements)
            if min(len(ours), len(other.features.single)) > 1
        }
