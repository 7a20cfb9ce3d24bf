"""The operation all objectives share: pull the student's x0 along a direction, Eq. 18-19."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.flow import expand
from fewstep.core.types import Reduction, per_sample, reduced

FLOOR = 0.1
"""Least normaliser k: keeps a student that already agrees from being pulled without bound."""


def pull_norm(x0: Tensor, reference: Tensor, *, floor: float = FLOOR) -> Tensor:
    """Normaliser k, Eq. 18: ``max(mean |reference - x0|, floor)`` per sample, detached: [B]."""
    return per_sample((reference - x0.detach()).abs()).clamp(min=floor)


def pull_loss(
    x0: Tensor,
    direction: Tensor,
    reference: Tensor,
    floor: float = FLOOR,
    reduction: Reduction = "mean",
) -> Tensor:
    """Loss whose gradient moves x0 along a direction, Eq. 19, in float32.

    ``mean over elements of (x0 - stopgrad(x0 + direction / k))^2``; its gradient with respect to
    x0 is ``-2 direction / (k n)`` for n elements. A non-finite ``direction / k`` counts as 0 (nan)
    or as the largest float (inf); x0 itself is never repaired, so a diverged student shows.

    Args:
        x0: The student's clean latent, with its graph, [B, ...].
        direction: Where to pull it, [B, ...].
        reference: What the normaliser compares x0 with, [B, ...].
        floor: Least normaliser.
        reduction: ``mean`` gives a scalar, ``none`` the mean per sample, [B].
    """
    x0, direction, reference = x0.float(), direction.float(), reference.float()
    k = pull_norm(x0, reference, floor=floor)
    target = x0 + torch.nan_to_num(direction / expand(k, x0))
    return reduced(per_sample((x0 - target.detach()).square()), reduction)
