"""How well few Euler steps draw the tiny world when the velocity is exact, whatever the network.

For some held-out prompts, many scenes each are drawn and encoded; the velocity is then that of
their posterior mean. What the oracle calls right is due to the steps alone. Latents of standard
deviation c under shift 3 are latents of 1 under shift 3 / c, so one set of scenes serves every c.

    python bench/world.py [--scenes 2500] [--prompts 9] [--pictures 16]
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import numpy as np
import paths  # noqa: F401
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fewstep import models
from fewstep.core.flow import velocity_from_x0
from fewstep.core.schedules import StaticShift, few_step_sigmas, with_shift
from fewstep.core.solver import euler
from fewstep.toyworld.oracle import judge, read
from fewstep.toyworld.scenes import Prompt, draw_scene, render
from fewstep.utils.resources import resolve
from toyworld_training.autoencoder import LATENT_STD, encode
from toyworld_training.pipeline import MAX_TOKENS, SHIFT
from toyworld_training.posterior import posterior_mean
from toyworld_training.prompts import distinct_prompts

STDS = (Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 5))


def walk(noise: Tensor, bank: Tensor, grid: Tensor) -> Tensor:
    """Where Euler's method ends over a grid [N + 1] with the exact velocity of the scenes.

    Args:
        noise: Where it starts, [B, 16, 8, 8].
        bank: Latents of the scenes, [n, 16, 8, 8].
        grid: Noise levels, shifted, 0 at the end.
    """
    candidates = bank.expand(len(noise), *bank.shape)

    def velocity(xt: Tensor, sigma: Tensor) -> Tensor:
        return velocity_from_x0(xt, posterior_mean(xt, sigma, candidates), sigma)

    *_, (_, _, x0) = euler(velocity, noise, grid)
    return x0


def encoded(vae: AutoencoderKL, prompt: Prompt, count: int, rng: np.random.Generator) -> Tensor:
    """Latents of so many scenes of a prompt [count, 16, 8, 8], scaled to standard deviation 1."""
    latents = []
    for start in range(0, count, 100):
        scenes = [draw_scene(prompt, rng) for _ in range(min(100, count - start))]
        latents.append(encode(vae, torch.from_numpy(render(scenes))))
    return torch.cat(latents) / LATENT_STD


def main() -> None:
    """Prints the share of right pictures by steps and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--prompts", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=16)
    args = parser.parse_args()
    data = resolve("package://fewstep.toyworld/data/pipeline")
    backbone = models.load(data, max_sequence_length=MAX_TOKENS)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    right: dict[tuple[Fraction, int], list[bool]] = {}
    for prompt in distinct_prompts(args.prompts, 5, held_out=True):
        bank = encoded(backbone.pipe.vae, prompt, args.scenes, rng)
        noise = torch.randn(args.pictures, *bank.shape[1:], generator=generator)
        for std in STDS:
            for steps in (4, 50):
                base, shift = torch.tensor(few_step_sigmas(steps)), StaticShift(SHIFT / float(std))
                latents = walk(noise, bank, with_shift(base, shift))
                with torch.no_grad():
                    images = backbone.decode(latents * LATENT_STD).numpy()
                verdicts = (judge(prompt, read(image)) for image in images)
                flags = [all(flag for _, flag in verdict) for verdict in verdicts]
                right.setdefault((std, steps), []).extend(flags)
    for (std, steps), flags in right.items():
        print(f"standard deviation {std!s:>3}, {steps:>2} steps: {np.mean(flags):.1%} right")


if __name__ == "__main__":
    main()
