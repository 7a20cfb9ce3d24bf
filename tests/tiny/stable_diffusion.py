"""Stable Diffusion 1.5, once with v-prediction, and XL."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from fewstep.models import Backbone
from tiny import Size, Tiny, parts

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Oracle(nn.Module):
    """Answers with the eps, or the v, that belongs to the target, at whole times."""

    def __init__(
        self,
        target: Tensor,
        *,
        betas: dict[str, Any] = BETAS,
        prediction_type: str = "epsilon",
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.target = target
        self.alphas_cumprod = DDIMScheduler(**betas).alphas_cumprod
        self.prediction_type = prediction_type
        self.learned_variance = learned_variance

    def forward(self, x_vp: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        assert torch.equal(timestep, timestep.round())
        alphas_cumprod = self.alphas_cumprod[timestep.long()][:, None, None, None]
        a, b = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        eps = (x_vp - a * self.target) / b
        answer = eps if self.prediction_type == "epsilon" else a * eps - b * self.target
        return (torch.cat([answer, answer + 1], 1) if self.learned_variance else answer,)


def first_noise(backbone: Backbone, latents: Tensor, size: Size) -> Tensor:
    """The draw that latents at the first sigma come from; the pipelines scale it themselves."""
    return latents / backbone.shift(*size)([1.0])[0]


def _unet(**more: Any) -> UNet2DConditionModel:
    net = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
        }
        | more
    )
    return parts.wake(net)


def _build(folder: Path, *, prediction_type: str) -> None:
    with parts.seeded(0):
        tokenizer = parts.clip_tokenizer("<|endoftext|>")
        kind: Any = PNDMScheduler if prediction_type == "epsilon" else DDIMScheduler
        pipe = StableDiffusionPipeline(
            vae=parts.vae4(0.18215),
            text_encoder=parts.clip(tokenizer, projection=False),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=kind(**BETAS, prediction_type=prediction_type, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _build_xl(folder: Path) -> None:
    with parts.seeded(1):
        tokenizers = parts.clip_tokenizer("<|endoftext|>"), parts.clip_tokenizer("!")
        pipe = StableDiffusionXLPipeline(
            vae=parts.vae4(0.13025),
            text_encoder=parts.clip(tokenizers[0], projection=False),
            text_encoder_2=parts.clip(tokenizers[1]),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=_unet(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 16,
            ),
            scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _published_xl() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


_tiny = partial(Tiny, size=(16, 16), wide=(16, 24), latents=first_noise, first=0.936)
sd15 = _tiny("sd15", "sd", partial(_build, prediction_type="epsilon"), Oracle, _published)
sd15_v = _tiny(
    "sd15_v",
    "sd",
    partial(_build, prediction_type="v_prediction"),
    partial(Oracle, prediction_type="v_prediction"),
    _published,
    variant=True,
)
sdxl = _tiny("sdxl", "sdxl", _build_xl, Oracle, _published_xl)
