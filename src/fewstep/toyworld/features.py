"""A small fixed network that turns the world's pictures into 64 bounded numbers.

It is trained to say what stands where, on pictures whose contrast, brightness and sharpness vary,
and its features end in a tanh: over-saturated pictures move them a little, wrong or missing things
move them a lot. Frechet distance, diversity and coverage are measured in this space.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.toyworld.scenes import BACKGROUNDS, COLORS, SHAPES, SIDE
from fewstep.utils.files import digest_files
from fewstep.utils.resources import resolve

WEIGHTS = "package://fewstep.toyworld/data/features.safetensors"
CELLS = 4
"""The picture is divided into so many cells a side, to say where things stand."""
KINDS = [(color, shape) for color in COLORS for shape in SHAPES]


class FeatureNet(nn.Module):
    """Pictures [B, 3, 64, 64] in [0, 1] -> features [B, 64] in (-1, 1)."""

    def __init__(self) -> None:
        """Random weights; `World` loads the trained ones."""
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(8, outside), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.Tanh())
        self.head = nn.Linear(64, len(KINDS) + len(BACKGROUNDS) + CELLS**2)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        return self.body(images * 2 - 1)


class World:
    """The feature space ``world``; its key changes with the weights."""

    def __init__(self) -> None:
        """Loads the trained weights."""
        self.key = f"world-{digest_files([resolve(WEIGHTS)])}"
        self.net = FeatureNet().eval().requires_grad_(False)
        self.net.load_state_dict(load_file(resolve(WEIGHTS)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, 64] of pictures [B, 3, 64, 64] in [0, 1]; on the CPU, float32.

        Raises:
            ValueError: for pictures of another size.
        """
        if images.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"features are for [B, 3, {SIDE}, {SIDE}], not {list(images.shape)}")
        images = images.detach().float().cpu().clamp(0, 1)
        return torch.cat([self.net(chunk) for chunk in images.split(256)])
