"""LongCat-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel
from torch import nn

from tiny import Tiny, parts
from tiny.flux import PackedOracle, dynamic_scheduler


def _build(folder: Path) -> None:
    with parts.seeded():
        tokenizer = parts.qwen_tokenizer()
        transformer = LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )
        LongCatImagePipeline(
            scheduler=dynamic_scheduler(base_shift=1.15),
            vae=parts.vae16(),
            text_encoder=parts.qwen_vl(tokenizer),
            tokenizer=tokenizer,
            text_processor=None,  # it needs torchvision
            transformer=parts.wake(transformer),
        ).save_pretrained(folder, safe_serialization=True)


def _guided(scale: float) -> dict[str, Any]:
    # As many as prompts: the pipeline's own "" is one, whatever the batch.
    return {"guidance_scale": scale, "negative_prompt": ["", ""]}


def _published() -> nn.Module:
    return LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20)


longcat = Tiny(
    "longcat",
    "longcat",
    _build,
    PackedOracle,
    _published,
    size=(16, 16),
    wide=(16, 24),
    guided=_guided,
)
