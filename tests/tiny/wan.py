"""Wan 2.1, text to video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from tiny import Tiny, parts


class Oracle(nn.Module):
    """(xt - target) / sigma on a clock from 0 to 1000."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = (timestep / 1000)[:, None, None, None, None]
        return ((hidden_states - self.target) / sigma,)


def umt5(size: int) -> UMT5EncoderModel:
    """The encoder of a multilingual T5 with so many tokens."""
    config = UMT5Config(
        vocab_size=size,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config).eval()


def _build(folder: Path) -> None:
    with parts.seeded():
        tokenizer = parts.t5_tokenizer()
        net = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=16,
            freq_dim=32,
            ffn_dim=48,
            num_layers=2,
            rope_max_seq_len=32,
        )
        vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        pipe = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=umt5(len(tokenizer)),
            vae=vae.eval(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                num_train_timesteps=1000,
                flow_shift=3.0,
            ),
            transformer=parts.wake(net),
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    """The size of Wan 2.1 1.3B."""
    return WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)


wan = Tiny(
    "wan",
    "wan",
    _build,
    Oracle,
    _published,
    options={"max_sequence_length": 16, "frames": 5},
)
