"""Families whose denoiser takes a sequence of patches, [B, N, C]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fewstep.models.base import Backbone
from fewstep.models.latents import decode_images, require_multiple
from fewstep.utils.errors import FewstepError

Grid = tuple[int, int]
"""Rows and columns of patches."""


def pack(x: Tensor, patch: int = 2) -> Tensor:
    """Cuts pictures into a sequence of patches; `unpack` is the inverse.

    Args:
        x: [B, C, rows patch, columns patch].
        patch: Side of a patch; 1 only flattens.

    Returns:
        [B, rows columns, C patch^2], row by row; within a patch the channel varies slowest.
    """
    cut = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B, C, rows, patch, columns, patch
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(x: Tensor, grid: Grid, patch: int = 2) -> Tensor:
    """Pictures [B, C, rows patch, columns patch] from patches [B, rows columns, C patch^2]."""
    cut = x.unflatten(1, grid).unflatten(3, (-1, patch, patch))
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class Packed(Backbone):
    """A family whose latents are a sequence of 2x2 patches, [B, N, C].

    A sequence does not determine the picture's width, which position ids need: `latent_shape`
    remembers the grid of N patches. Of two grids with the same N, the last one counts.

    Attributes:
        drawn_patch: The stock pipeline draws noise as a picture and cuts it into patches of this
            side; 1: it draws patches.
    """

    drawn_patch: ClassVar[int] = 2

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Wraps a loaded pipeline; see `Backbone`."""
        super().__init__(pipe, source)
        self._grids: dict[int, Grid] = {}

    def _grid_of(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of a picture, for its size in pixels."""
        side = 2 * int(self.pipe.vae_scale_factor)
        require_multiple(height, width, side)
        return height // side, width // side

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """[N, C]: the number of patches and their channels; remembers their grid."""
        rows, columns = self._grid_of(height, width)
        self._grids[rows * columns] = rows, columns
        return rows * columns, int(self.config.in_channels)

    def image_tokens(self, height: int, width: int) -> int:
        """See `Scheduled.image_tokens`: the number of patches."""
        return math.prod(self._grid_of(height, width))

    def grid(self, tokens: int) -> Grid:
        """Rows and columns of a number of patches: the last of `latent_shape`, or a square.

        Raises:
            FewstepError: `latent_shape` had no such number of patches, and it is no square.
        """
        if tokens in self._grids:
            return self._grids[tokens]
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise FewstepError(
                f"{tokens} image tokens: their height and width are unknown;"
                " call latent_shape(height, width) first",
                code="missing-input",
            )
        return side, side

    def noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """See `Backbone.noise`: drawn as a picture, then packed, [1, N, C]."""
        _, channels = self.latent_shape(height, width)
        rows, columns = self._grid_of(height, width)
        side = self.drawn_patch
        shape = (1, channels // side**2, rows * side, columns * side)
        return pack(torch.randn(shape, generator=generator), side)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; undoes the packing, then the VAE's scale and shift."""
        vae = self.pipe.vae
        spatial = unpack(latents.float(), self.grid(latents.shape[1]))
        spatial = spatial / vae.config.scaling_factor + vae.config.shift_factor
        return decode_images(vae, spatial)


def model_clock(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """Sigma [B] as these pipelines pass it to the denoiser: 1000 sigma is cast and then divided.

    In bfloat16, that is not the same as casting sigma.
    """
    return (sigma * 1000).to(dtype) / 1000


def position_ids(
    grid: Grid, device: torch.device, *, first: Grid = (0, 0), kind: int = 0
) -> Tensor:
    """Position ids of the patches of a picture: (kind, row, column), [N, 3], float32.

    Args:
        grid: Rows and columns.
        device: Where to.
        first: Row and column of the first patch.
        kind: First number of all ids.
    """
    rows, columns = (
        torch.arange(start, start + count, dtype=torch.float32, device=device)
        for start, count in zip(first, grid, strict=True)
    )
    return torch.cartesian_prod(torch.full_like(rows[:1], kind), rows, columns)
