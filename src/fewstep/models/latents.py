"""What families share around latents: the check of a picture's size, and the autoencoder's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.utils.errors import FewstepError

LARGEST_SIDE = 2**14
"""Bound on a picture's sides, in pixels; no model draws larger ones, and mistakes have no bound."""


def require_at_most(height: int, width: int, most: int) -> None:
    """Checks that a picture's sides, in pixels, are above 0 and no larger than a number.

    Raises:
        FewstepError: They are not.
    """
    if not (0 < height <= most and 0 < width <= most):
        raise FewstepError(
            f"{height}x{width}: height and width must be above 0 and at most {most} for this model",
            code="out-of-range",
        )


def require_multiple(height: int, width: int, multiple: int) -> None:
    """Checks that a picture's sides, in pixels, are multiples of a number and not absurd.

    Raises:
        FewstepError: They are not.
    """
    require_at_most(height, width, LARGEST_SIDE)
    if height % multiple or width % multiple:
        raise FewstepError(
            f"{height}x{width}: height and width must be multiples of {multiple} for this model",
            code="out-of-range",
        )


def decode_images(vae: Any, latents: Tensor) -> Tensor:
    """Pictures or videos in [0, 1], float32, from latents as the autoencoder takes them.

    Args:
        vae: An autoencoder whose pictures are in [-1, 1]; it computes in its own precision.
        latents: [B, C, h, w] or [B, C, T, h, w], with scale, shift or normalisation undone.
    """
    images: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    pictures = (images * 0.5 + 0.5).clamp(0, 1)
    # Clamping would make white of what overflows: it stays recognisable instead.
    return torch.where(images.isfinite(), pictures, torch.nan).float()


def denormalise(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, ...] times the standard deviation of each channel, plus its mean.

    Both are in the configuration of autoencoders for videos, as `latents_std` and `latents_mean`.
    """
    mean, std = (
        torch.tensor(values, device=latents.device).view(-1, *[1] * (latents.dim() - 2))
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * std + mean
