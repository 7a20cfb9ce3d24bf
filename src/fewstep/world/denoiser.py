"""The world's teacher: transformer and text encoders, trained together by flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fewstep.flow import add_noise
from fewstep.world import pipeline
from fewstep.world.fit import FitSettings, fit
from fewstep.world.scenes import draw_scene, prompts, render

SETTINGS = FitSettings(steps=30_000, lr=1e-3, warmup=200, decay_from=0.6)
SIZES = pipeline.Sizes()
BATCH = 64
SCENES = 40_960  # drawn and encoded once
_UNCONDITIONAL = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance


@dataclass(frozen=True)
class Pairs:
    """Captions and their pictures' latents [n, 16, 8, 8] as the denoiser sees them."""

    captions: list[str]
    latents: Tensor


def draw_pairs(vae: AutoencoderKL, count: int, seed: int, *, chunk: int = 64) -> Pairs:
    """Freshly drawn training scenes, encoded: x0 = (latent - shift) * scale."""
    rng, stream = np.random.default_rng([seed, 1]), prompts(seed + 1, held_out=False)
    captions: list[str] = []
    latents = torch.empty(count, 16, 8, 8, dtype=torch.float16)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, chunk):
        batch = [next(stream) for _ in range(min(chunk, count - start))]
        images = torch.from_numpy(render([draw_scene(prompt, rng) for prompt in batch]))
        with torch.no_grad():
            found = vae.encode(images * 2 - 1).latent_dist.sample(generator)
        found = (found - vae.config.shift_factor) * vae.config.scaling_factor
        latents[start : start + len(batch)] = found.half()
        captions += map(str, batch)
    return Pairs(captions, latents)


class Conditioned(nn.Module):
    """Transformer and text encoders as one trainable module: (xt, sigma, token ids) -> velocity."""

    def __init__(self, pipe: StableDiffusion3Pipeline) -> None:
        """Takes the networks out of the pipeline; they stay shared with it."""
        super().__init__()
        self.transformer = pipe.transformer
        self.clip, self.clip_2 = pipe.text_encoder, pipe.text_encoder_2
        self.t5 = pipe.text_encoder_3

    def forward(self, xt: Tensor, sigma: Tensor, ids: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Velocity [B, 16, 8, 8]; the text is encoded as by the stock pipeline, with gradients."""
        first = self.clip(ids[0], output_hidden_states=True)
        second = self.clip_2(ids[1], output_hidden_states=True)
        long = self.t5(ids[2])[0]
        short = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        short = nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
        return self.transformer(
            hidden_states=xt,
            timestep=sigma * 1000,
            encoder_hidden_states=torch.cat([short, long], dim=-2),
            pooled_projections=torch.cat([first[0], second[0]], dim=-1),
            return_dict=False,
        )[0]


def start_as_identity(net: nn.Module) -> None:
    """Zeroes the modulation, so that every block begins as the identity (adaLN-Zero)."""
    for name, module in net.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count]: logit-normal under SD3's shift, one in five uniform."""
    spread = torch.sigmoid(1.2 * torch.randn(count, generator=generator))
    spread = pipeline.SHIFT * spread / (1 + (pipeline.SHIFT - 1) * spread)
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.2, even, spread)


def train(
    vae: AutoencoderKL,
    pairs: Pairs,
    folder: Path,
    *,
    seed: int = 0,
    settings: FitSettings = SETTINGS,
    sizes: pipeline.Sizes = SIZES,
    start: StableDiffusion3Pipeline | None = None,
    device: str = "cpu",
) -> StableDiffusion3Pipeline:
    """Trains everything but the autoencoder and returns the finished pipeline, on the CPU.

    Args:
        vae: The finished autoencoder.
        pairs: What to learn.
        folder: For the log, and to continue from.
        seed: Of the weights and of every draw.
        settings: How long and how fast.
        sizes: Of the networks, unless `start` is given.
        start: A pipeline whose weights to begin with, instead of random ones.
        device: Where to train; random values are drawn on the CPU, whatever it is.
    """
    pipe = start or pipeline.build(seed, sizes, vae=vae)
    if start is None:
        start_as_identity(pipe.transformer)
    net = Conditioned(pipe).train().requires_grad_(True).to(device)
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3)
    captions = [*pairs.captions, ""]
    ids = [_tokens(tokenizer, captions) for tokenizer in tokenizers]

    def loss(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(pairs.captions), (BATCH,), generator=generator)
        x0 = pairs.latents[rows].float()
        dropped = torch.rand(BATCH, generator=generator) < _UNCONDITIONAL
        words = torch.where(dropped, len(pairs.captions), rows)
        sigma, eps = draw_sigmas(BATCH, generator), torch.randn(x0.shape, generator=generator)
        xt = add_noise(x0, eps, sigma)
        asked = tuple(tokens[words].to(device) for tokens in ids)
        velocity = net(xt.to(device), sigma.to(device), asked)
        return {"loss": (velocity - (eps - x0).to(device)).square().mean()}

    fit(net, loss, settings, folder)
    net.cpu().eval()
    return pipe


def _tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    length = pipeline.MAX_TOKENS
    found = tokenizer(captions, padding="max_length", max_length=length, truncation=True)
    return torch.tensor(found.input_ids)
