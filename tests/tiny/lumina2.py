"""Lumina-Image 2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from torch import Tensor, nn

from tiny import Tiny
from tiny.parts import gemma, gemma_tokenizer, seeded, vae16, wake


class Oracle(nn.Module):
    """-(xt - target) / sigma on Lumina's clock."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = (1 - timestep)[:, None, None, None]
        return ((self.target - hidden_states) / sigma,)


def _build(folder: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    with seeded():
        net = Lumina2Transformer2DModel(
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(128, 16, 16),
            cap_feat_dim=32,
        )
        # The pipeline takes the VAE to have 4 levels, and has the system prompt.
        pipe = Lumina2Pipeline(wake(net), scheduler, vae16(levels=4), None, None)
        tokenizer = gemma_tokenizer(pipe.system_prompt + " <Prompt Start> ")
        pipe.register_modules(tokenizer=tokenizer, text_encoder=gemma(tokenizer))
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return Lumina2Transformer2DModel(cap_feat_dim=2304)


lumina2 = Tiny(
    "lumina2", "lumina2", _build, Oracle, _published, options={"max_sequence_length": 64}
)
