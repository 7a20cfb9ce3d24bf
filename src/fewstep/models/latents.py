"""What families share around latents: the check of a picture's size, and the autoencoder's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.utils.errors import FewstepError

LARGEST_SIDE = 2**14
"""Bound on a picture's sides, in pixels; no model draws larger ones, and mistakes have no bound."""
_AT_ONCE = 1024**2  # pixels that are decoded at once: an autoencoder keeps hundreds of numbers each
_WHOLE = 1536**2  # pixels of the largest picture that is decoded as a whole


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


def pictures_at_once(height: int, width: int) -> int:
    """How many pictures of a size, in pixels, are decoded in one call: 1 from 1024 x 1024 on."""
    return max(1, _AT_ONCE // (height * width))


def decode_images(vae: Any, latents: Tensor) -> Tensor:
    """Pictures or videos in [0, 1], float32, from latents as the autoencoder takes them.

    Pictures above `_WHOLE` pixels are decoded in overlapping tiles, as diffusers does.

    Args:
        vae: An autoencoder whose pictures are in [-1, 1]; it computes in its own precision.
        latents: [B, C, h, w] or [B, C, T, h, w], with scale, shift or normalisation undone.
    """
    height, width = latents.shape[-2:]
    tiled = height * width * _factor(vae) ** 2 > _WHOLE and hasattr(vae, "enable_tiling")
    if tiled:
        vae.enable_tiling()
    try:
        images: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finally:
        if tiled:
            vae.disable_tiling()
    pictures = (images * 0.5 + 0.5).clamp(0, 1)
    # Clamping would make white of what overflows: it stays recognisable instead.
    return torch.where(images.isfinite(), pictures, torch.nan).float()


def _factor(vae: Any) -> int:
    """Pixels a latent, on each side."""
    blocks = getattr(vae.config, "block_out_channels", ())
    return int(getattr(vae, "spatial_compression_ratio", 2 ** (len(blocks) - 1)))


def denormalise(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, ...] times the standard deviation of each channel, plus its mean.

    Both are in the configuration of autoencoders for videos, as `latents_std` and `latents_mean`.
    """
    mean, std = (
        torch.tensor(values, device=latents.device).view(-1, *[1] * (latents.dim() - 2))
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * std + mean
