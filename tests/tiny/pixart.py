"""PixArt-Sigma."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import nn

from tiny import Tiny, parts
from tiny.stable_diffusion import Oracle, first_noise

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


class PixArtOracle(Oracle):
    """The oracle, called as PixArt is: everything but the latents by name."""

    def forward(self, hidden_states, timestep, **more):
        return super().forward(hidden_states, timestep, **more)


def _build(folder: Path) -> None:
    with parts.seeded(0):
        tokenizer = parts.t5_tokenizer()
        net = PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
        )
        pipe = PixArtSigmaPipeline(
            tokenizer=tokenizer,
            text_encoder=parts.t5(tokenizer),
            vae=parts.vae4(0.13025),
            transformer=parts.wake(net),
            scheduler=DPMSolverMultistepScheduler(**BETAS),
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return PixArtTransformer2DModel(caption_channels=4096, use_additional_conditions=False)


pixart = Tiny(
    "pixart",
    "pixart",
    _build,
    partial(PixArtOracle, betas=BETAS, learned_variance=True),
    _published,
    options={"max_sequence_length": 16},
    size=(16, 16),
    wide=(16, 24),
    latents=first_noise,
    lora=False,
    first=0.9937,
)
