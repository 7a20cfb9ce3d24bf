"""Training of the world's feature net: to name the things, the background, the occupied cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.toyworld.features import CELLS, KINDS, FeatureNet
from fewstep.toyworld.scenes import BACKGROUNDS, SIDE, Scene, draw_scene, render
from toyworld_training.fit import FitSettings, fit
from toyworld_training.prompts import prompts

SETTINGS = FitSettings(steps=2500, lr=2e-3, decay_from=0.4)
_BATCH = 64


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
    cells = torch.zeros(CELLS, CELLS)
    for thing in scene.things:
        cells[int(thing.y * CELLS / SIDE), int(thing.x * CELLS / SIDE)] = 1.0
    named = [float(kind in kinds) for kind in KINDS]
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
