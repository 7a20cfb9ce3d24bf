"""FLUX.1-dev."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from tiny import Tiny, parts


class PackedOracle(nn.Module):
    """(xt - target) / sigma on a clock from 0 to 1, for patches in a row."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return ((hidden_states - self.target) / timestep[:, None, None],)


def dynamic_scheduler(**more: Any) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler whose shift depends on the size."""
    settings = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    return FlowMatchEulerDiscreteScheduler(**(settings | more))


def _build(folder: Path) -> None:
    with parts.seeded():
        clip_tokenizer, t5_tokenizer = parts.clip_tokenizer("<|endoftext|>"), parts.t5_tokenizer()
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        FluxPipeline(
            scheduler=dynamic_scheduler(),
            vae=parts.vae16(),
            text_encoder=parts.clip(clip_tokenizer, projection=False),
            tokenizer=clip_tokenizer,
            text_encoder_2=parts.t5(t5_tokenizer),
            tokenizer_2=t5_tokenizer,
            transformer=parts.wake(transformer),
        ).save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return FluxTransformer2DModel(guidance_embeds=True)


flux = Tiny(
    "flux",
    "flux",
    _build,
    PackedOracle,
    _published,
    options={"max_sequence_length": 32},
    size=(16, 16),
    wide=(16, 24),
)
