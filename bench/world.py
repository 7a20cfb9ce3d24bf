"""How well few Euler steps draw the tiny world when the velocity is exact, whatever the network.

For some held-out prompts, many scenes each are drawn and encoded; the velocity is then that of
their posterior mean. What the oracle calls right is due to the steps alone. Latents of standard
deviation c under shift 3 are latents of 1 under shift 3 / c, so one set of scenes serves every c.

    python bench/world.py [--scenes 2500] [--prompts 9] [--pictures 16]
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fewstep import backbones
from fewstep.resources import resolve
from fewstep.world.autoencoder import LATENT_STD
from fewstep.world.oracle import judge, read
from fewstep.world.pipeline import MAX_TOKENS, SHIFT
from fewstep.world.posterior import posterior_mean
from fewstep.world.scenes import Prompt, distinct_prompts, draw_scene, render

STDS = (Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 5))


def sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels of `steps` even steps under a shift, 0 at the end."""
    base = torch.linspace(1, 0, steps + 1)
    return (shift * base / (1 + (shift - 1) * base)).tolist()


def walk(xt: Tensor, bank: Tensor, levels: list[float]) -> Tensor:
    """Euler steps [K, ...] down the levels, with the exact velocity of the scenes [n, ...]."""
    candidates = bank.expand(len(xt), *bank.shape)
    for sigma, after in pairwise(levels):
        x0 = posterior_mean(xt, torch.full((len(xt),), sigma), candidates)
        xt = xt + (after - sigma) * (xt - x0) / sigma
    return xt


@torch.no_grad()
def encoded(vae: torch.nn.Module, prompt: Prompt, count: int, rng: np.random.Generator) -> Tensor:
    """Latents of so many scenes of a prompt [count, 16, 8, 8], scaled to standard deviation 1."""
    found = []
    for start in range(0, count, 100):
        scenes = [draw_scene(prompt, rng) for _ in range(min(100, count - start))]
        found.append(vae.encode(torch.from_numpy(render(scenes)) * 2 - 1).latent_dist.mode())
    latents = torch.cat(found) - vae.config.shift_factor
    return latents * (vae.config.scaling_factor / LATENT_STD)


def main() -> None:
    """Prints the share of right pictures by steps and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=16)
    asked = parser.parse_args()
    data = resolve("package://fewstep.world/data/pipeline")
    backbone = backbones.load(data, max_sequence_length=MAX_TOKENS)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    right: dict[tuple[Fraction, int], list[bool]] = {}
    for prompt in distinct_prompts(asked.prompts, 5, held_out=True):
        bank = encoded(backbone.pipe.vae, prompt, asked.scenes, rng)
        noise = torch.randn(asked.pictures, *bank.shape[1:], generator=generator)
        for std in STDS:
            for steps in (4, 50):
                latents = walk(noise, bank, sigmas(steps, SHIFT / float(std)))
                with torch.no_grad():
                    images = backbone.decode(latents * LATENT_STD).numpy()
                verdicts = [judge(prompt, read(image)).right for image in images]
                right.setdefault((std, steps), []).extend(verdicts)
    for (std, steps), verdicts in right.items():
        print(f"standard deviation {std!s:>3}, {steps:>2} steps: {np.mean(verdicts):.1%} right")


if __name__ == "__main__":
    main()
