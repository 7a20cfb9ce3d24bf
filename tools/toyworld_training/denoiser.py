"""The world's teacher: a transformer trained by flow matching on frozen text features.

Its targets are posterior means (`posterior.py`), which have no noise that only averages out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor

from fewstep.core.flow import add_noise, velocity_from_x0
from fewstep.toyworld.scenes import Prompt, draw_scene, parse, render
from toyworld_training import pipeline
from toyworld_training.autoencoder import encode
from toyworld_training.fit import FitSettings, fit
from toyworld_training.posterior import FACTS, SceneBank, describe, posterior_mean
from toyworld_training.prompts import prompts

SETTINGS = FitSettings(steps=30_000, lr=1e-3, warmup=200, decay_from=0.6)
BATCH = 128
SCENES = 163_840  # drawn and encoded once; half as many were seen too often
_REPEATS = 3  # scenes a caption has at most; short captions would make up most of them otherwise
_CANDIDATES = 128  # scenes that a noisy latent is compared with
_UNCONDITIONAL = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance
_WITHOUT_T5 = 0.8  # share of steps without T5's words: SD3, too, learned to draw without them


@dataclass(frozen=True)
class Pairs:
    """Captions, latents [n, 16, 8, 8] as the denoiser sees them, and facts [n, FACTS] of scenes."""

    captions: list[str]
    latents: Tensor
    facts: Tensor


def draw_captions(seed: int) -> Iterator[Prompt]:
    """Training prompts, none more than `_REPEATS` times."""
    seen: Counter[Prompt] = Counter()
    for prompt in prompts(seed, held_out=False):
        if seen[prompt] < _REPEATS:
            seen[prompt] += 1
            yield prompt


def draw_pairs(vae: AutoencoderKL, count: int, seed: int, *, chunk: int = 64) -> Pairs:
    """Freshly drawn training scenes, encoded: x0 = (latent - shift) * scale."""
    rng, stream = np.random.default_rng([seed, 1]), draw_captions(seed + 1)
    captions: list[str] = []
    latents = torch.empty(count, 16, 8, 8, dtype=torch.float16)
    facts = torch.empty(count, FACTS, dtype=torch.int8)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, chunk):
        batch = [next(stream) for _ in range(min(chunk, count - start))]
        scenes = [draw_scene(prompt, rng) for prompt in batch]
        rows = slice(start, start + len(batch))
        latents[rows] = encode(vae, torch.from_numpy(render(scenes)), generator).half()
        facts[rows] = torch.tensor([describe(scene) for scene in scenes])
        captions += map(str, batch)
    return Pairs(captions, latents, facts)


@dataclass(frozen=True)
class TextFeatures:
    """Output of the frozen text encoders for n captions: tokens [n, L, t5], pooled [n, 2 clip]."""

    tokens: Tensor
    pooled: Tensor

    @property
    def without_t5(self) -> Tensor:
        """The same without T5 [n, CLIP's tokens + 1, t5]: one token of zeros, as stock code has."""
        tokens = self.tokens[:, : pipeline.MAX_TOKENS + 1].clone()
        tokens[:, -1] = 0.0
        return tokens


@torch.no_grad()
def read(pipe: StableDiffusion3Pipeline, captions: list[str], *, chunk: int = 256) -> TextFeatures:
    """Captions as the stock pipeline encodes them."""
    tokens, pooled = [], []
    for start in range(0, len(captions), chunk):
        states, _, summary, _ = pipe.encode_prompt(
            captions[start : start + chunk],
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=pipeline.MAX_TOKENS,
        )
        tokens.append(states)
        pooled.append(summary)
    return TextFeatures(torch.cat(tokens), torch.cat(pooled))


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count]: logit-normal under SD3's shift, one in five uniform."""
    spread = torch.sigmoid(1.2 * torch.randn(count, generator=generator))
    spread = pipeline.SHIFT * spread / (1 + (pipeline.SHIFT - 1) * spread)
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.2, even, spread)


def train(
    pipe: StableDiffusion3Pipeline,
    pairs: Pairs,
    folder: Path,
    *,
    seed: int = 0,
    settings: FitSettings = SETTINGS,
    device: str = "cpu",
    compiled: bool = False,
) -> None:
    """Trains the pipeline's transformer on its text encoders' output; it ends on the CPU.

    Args:
        pipe: The pipeline; its text encoders and autoencoder stay as they are.
        pairs: What to learn.
        folder: For the log, and to continue from.
        seed: Of every draw.
        settings: How long and how fast.
        device: Where to train; random values are drawn on the CPU, whatever it is.
        compiled: Whether torch compiles the transformer: a minute or two once, then 1.4x as fast.
    """
    captions = sorted({*pairs.captions, ""})
    place = {caption: number for number, caption in enumerate(captions)}
    words = torch.tensor([place[caption] for caption in pairs.captions])
    text_features = read(pipe, captions)
    tokens, pooled = text_features.tokens.to(device), text_features.pooled.to(device)
    without_t5 = text_features.without_t5.to(device)
    net = pipe.transformer.train().requires_grad_(True).to(device)
    forward = torch.compile(net, dynamic=False) if compiled else net
    bank, meant = SceneBank(pairs.facts), [parse(caption) for caption in pairs.captions]

    def loss(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(words), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < _UNCONDITIONAL
        chosen = torch.where(dropped, place[""], words[rows]).to(device)
        x0 = pairs.latents[rows].to(device).float()
        sigma = draw_sigmas(BATCH, generator).clamp_min(1e-3).to(device)  # divided by below
        xt = add_noise(x0, torch.randn(x0.shape, generator=generator).to(device), sigma)
        text = without_t5 if torch.rand(1, generator=generator) < _WITHOUT_T5 else tokens
        candidates = torch.stack(
            [
                bank.candidates(row, None if gone else meant[row], _CANDIDATES, generator)
                for row, gone in zip(rows.tolist(), dropped.tolist(), strict=True)
            ]
        )
        mean = posterior_mean(xt, sigma, pairs.latents[candidates].to(device).float())
        velocity = forward(
            hidden_states=xt,
            timestep=sigma * 1000,
            encoder_hidden_states=text[chosen],
            pooled_projections=pooled[chosen],
            return_dict=False,
        )[0]
        return {"loss": (velocity - velocity_from_x0(xt, mean, sigma)).square().mean()}

    fit(net, loss, settings, folder)
    net.cpu().eval()
