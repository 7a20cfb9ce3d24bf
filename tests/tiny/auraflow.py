"""AuraFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from tiny import Tiny
from tiny.parts import seeded, t5_tokenizer, wake


class Oracle(nn.Module):
    """(xt - target) / sigma on AuraFlow's clock."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        return ((hidden_states - self.target) / timestep[:, None, None, None],)


def _encoder(tokenizer: T5Tokenizer) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config).eval()


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=[8, 8],
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).eval()


@torch.no_grad()
def _loud(net: nn.Module) -> None:
    """Makes the matrices larger, in place: with the usual ones every gate is nearly shut."""
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3)


def _build(folder: Path) -> None:
    with seeded():
        tokenizer = t5_tokenizer()
        net = AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        )
        _loud(net)
        pipe = AuraFlowPipeline(
            tokenizer,
            _encoder(tokenizer),
            _autoencoder(),
            wake(net),
            FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return AuraFlowTransformer2DModel(pos_embed_max_size=9216)


auraflow = Tiny(
    "auraflow",
    "auraflow",
    _build,
    Oracle,
    _published,
    options={"max_sequence_length": 16},
    size=(16, 16),
    wide=(16, 24),
)
