"""A small fixed network that turns the world's pictures into 64 bounded numbers.

It is trained to say what stands where, on pictures whose contrast, brightness and sharpness vary,
and its features end in a tanh: over-saturated pictures move them a little, wrong or missing things
move them a lot. Frechet distance, diversity and coverage are measured in this space.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.toyworld.fit import FitSettings, fit
from fewstep.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIDE,
    Scene,
    draw_scene,
    prompts,
    render,
)
from fewstep.utils.files import digest_files
from fewstep.utils.resources import resolve

WEIGHTS = "package://fewstep.toyworld/data/features.safetensors"
SETTINGS = FitSettings(steps=2500, lr=2e-3, decay_from=0.4)
_BATCH = 64
_CELLS = 4  # the picture is divided into so many cells a side
_KINDS = [(color, shape) for color in COLORS for shape in SHAPES]


class FeatureNet(nn.Module):
    """Pictures [B, 3, 64, 64] in [0, 1] -> features [B, 64] in (-1, 1)."""

    def __init__(self) -> None:
        """Random weights; `features` loads the trained ones."""
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside)]
            layers += [nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64), nn.Tanh())
        self.head = nn.Linear(64, len(_KINDS) + len(BACKGROUNDS) + _CELLS**2)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        return self.body(images * 2 - 1)


@cache
def _trained() -> FeatureNet:
    net = FeatureNet()
    net.load_state_dict(load_file(resolve(WEIGHTS)))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Features [B, 64] of pictures [B, 3, 64, 64] in [0, 1]; on the CPU, float32.

    Raises:
        ValueError: for pictures of another size.
    """
    if images.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(f"features are for [B, 3, {SIDE}, {SIDE}], not {list(images.shape)}")
    images = images.detach().float().cpu().clamp(0, 1)
    return torch.cat([_trained()(chunk) for chunk in images.split(256)])


class World:
    """The feature space ``world``: `features`, with a key that changes with the weights."""

    def __init__(self) -> None:
        self.key = f"world-{digest_files([resolve(WEIGHTS)])}"

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, 64, 64] in [0, 1] -> [B, 64]."""
        return features(images)


def train(folder: Path, *, seed: int = 0, settings: FitSettings = SETTINGS) -> FeatureNet:
    """Trains the network to name the things, the background and the occupied cells."""
    torch.manual_seed(seed)
    net = FeatureNet()

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step, 7])
        stream = prompts(int(rng.integers(2**31)), held_out=False)
        scenes = [draw_scene(next(stream), rng) for _ in range(_BATCH)]
        images = _disturb(torch.from_numpy(render(scenes)), rng)
        target = torch.stack([_target(scene) for scene in scenes])
        logits = net.head(net(images))
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, target)}

    fit(net, loss, settings, folder)
    return net.eval()


def _target(scene: Scene) -> Tensor:
    kinds = {(thing.color, thing.shape) for thing in scene.things}
    cells = torch.zeros(_CELLS, _CELLS)
    for thing in scene.things:
        cells[int(thing.y * _CELLS / SIDE), int(thing.x * _CELLS / SIDE)] = 1.0
    named = [float(kind in kinds) for kind in _KINDS]
    ground = [float(name == scene.background) for name in BACKGROUNDS]
    return torch.cat([torch.tensor(named + ground), cells.flatten()])


def _disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, brightness, blur and noise, as an imperfect generator varies them."""
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))

    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - middle) * draw(0.8, 1.3) + middle + draw(-0.05, 0.05)
    images = torch.lerp(images, nn.functional.avg_pool2d(images, 3, 1, 1), draw(0.0, 0.8))
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return (images + 0.03 * noise).clamp(0, 1)
