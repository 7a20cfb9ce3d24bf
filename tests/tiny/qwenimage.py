"""Qwen-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import nn

from tiny import Tiny, parts
from tiny.flux import PackedOracle, dynamic_scheduler


def _build(folder: Path) -> None:
    with parts.seeded():
        tokenizer = parts.qwen_tokenizer()
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False]
        )
        QwenImagePipeline(
            scheduler=dynamic_scheduler(max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
            vae=vae.eval(),
            text_encoder=parts.qwen_vl(tokenizer),
            tokenizer=tokenizer,
            transformer=parts.wake(transformer),
        ).save_pretrained(folder, safe_serialization=True)


def _guided(scale: float) -> dict[str, Any]:
    return {"true_cfg_scale": scale, "negative_prompt": ["", ""]}


def _published() -> nn.Module:
    return QwenImageTransformer2DModel()


qwenimage = Tiny(
    "qwenimage",
    "qwenimage",
    _build,
    PackedOracle,
    _published,
    options={"max_sequence_length": 64},
    size=(16, 16),
    wide=(16, 24),
    guided=_guided,
)
