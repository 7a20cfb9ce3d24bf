"""The world's autoencoder: a real AutoencoderKL, 8x downsampling, 16 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fewstep.toyworld.scenes import draw_scene, render
from toyworld_training.fit import FitSettings, fit
from toyworld_training.prompts import prompts

SETTINGS = FitSettings(steps=3200, lr=2e-3, decay_from=0.5)
_BATCH = 16
_KL = 1e-4  # weight of the mean divergence per latent element
# Standard deviation of scaled latents. With 1, as SD3 has it, even the exact velocity draws this
# small world well in four steps; see docs/tiny-world.md.
LATENT_STD = 1 / 3
_EDGE = 3.0  # extra weight of pixels beside an edge: outlines decide crispness but are few


def draw_images(count: int, seed: int, step: int) -> Tensor:
    """Training pictures [count, 3, 64, 64] in [0, 1], a function of (seed, step)."""
    rng = np.random.default_rng([seed, step])
    stream = prompts(int(rng.integers(2**31)), held_out=False)
    scenes = [draw_scene(next(stream), rng) for _ in range(count)]
    return torch.from_numpy(render(scenes))


def build() -> AutoencoderKL:
    """The untrained network, laid out as SD3's: no quantisation convolutions."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def edges(images: Tensor) -> Tensor:
    """How much the colour varies within two pixels [B, 1, H, W]; 0 on plain ground."""
    widest = nn.functional.max_pool2d(images, 5, stride=1, padding=2)
    narrowest = -nn.functional.max_pool2d(-images, 5, stride=1, padding=2)
    return (widest - narrowest).amax(dim=1, keepdim=True)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents as a denoiser sees them, (latent - shift) * scale: [B, 16, 8, 8].

    Args:
        vae: With its scale and shift, as `train` returns it.
        images: [B, 3, 64, 64] in [0, 1].
        generator: Draws from the posterior; without it, its mode is taken.
    """
    posterior = vae.encode(images * 2 - 1).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def train(
    folder: Path, *, seed: int = 0, settings: FitSettings = SETTINGS, device: str = "cpu"
) -> AutoencoderKL:
    """Trains the autoencoder, measures the scale and shift of its latents, and returns it."""
    torch.manual_seed(seed)
    vae = build().to(device)

    def loss(step: int) -> dict[str, Tensor]:
        torch.manual_seed(seed * 1_000_003 + step)
        images = draw_images(_BATCH, seed, step).to(device) * 2 - 1
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample()).sample - images
        weight = 1.0 + _EDGE * edges(images)
        absolute, square = (weight * error.abs()).mean(), (weight * error.square()).mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        total = absolute + 2.0 * square + _KL * divergence
        return {"loss": total, "absolute": absolute, "square": square, "kl": divergence}

    fit(vae, loss, settings, folder)
    with torch.no_grad():
        images = draw_images(512, seed, settings.steps).to(device) * 2 - 1
        latents = vae.encode(images).latent_dist.sample()
    vae.register_to_config(
        scaling_factor=round(LATENT_STD / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )
    return vae.cpu().eval()
