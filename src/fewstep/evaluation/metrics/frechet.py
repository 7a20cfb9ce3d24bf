"""Frechet distance between feature clouds: to fresh real pictures and to the teacher's samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import Measurements, References


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two clouds (Dowson & Landau 1982).

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)``, in float64: the formula of FID, in
    whatever space the features live in.

    Args:
        first: Features [N, F], N >= 2.
        second: Features [M, F], M >= 2.
    """
    a, b = first.double(), second.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(mean + cov_a.trace() + cov_b.trace() - 2 * inner))


class Frechet:
    """Distance to every reference there is; smaller is better, 0 is equal mean and covariance."""

    name = "frechet"
    needs_truth = False

    def __call__(self, configuration: Measurements, references: References) -> dict[str, float]:
        """`frechet_teacher`, and `frechet_real` where real pictures can be drawn."""
        return {
            f"frechet_{name}": frechet_distance(configuration.single, other.single)
            for name, other in references.besides(configuration)
        }


SCORE = Frechet()
