"""Stable Diffusion 1, 2 and XL: U-Nets that predict eps or v, CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.comfyui import ComfyUI
from fewstep.models.published import Published
from fewstep.models.variance_preserving import VariancePreserving
from fewstep.utils.errors import FewstepError

_TIMES = "trained times 0..999"


class StableDiffusion(VariancePreserving):
    """Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752)."""

    name: ClassVar[str] = "sd"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "v1-5-pruned-emaonly.safetensors",
        latent="EmptyLatentImage",
        betas=("scaled_linear", 0.00085, 0.012),
    )
    notes: ClassVar[str] = "Predicts eps or v, as its scheduler says; there is no safety checker."
    net_name: ClassVar[str] = "unet"
    models: ClassVar[tuple[Published, ...]] = (
        Published("SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", 0.86, _TIMES, "CLIP-L"),
    )

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Wraps the pipeline.

        Raises:
            FewstepError: The U-Net has a guidance input, as consistency models do.
        """
        super().__init__(pipe, source)
        if pipe.unet is not None and pipe.unet.config.time_cond_proj_dim is not None:
            raise FewstepError(
                f"{source}: its unet has a guidance input (time_cond_proj_dim), so it is a"
                " distilled model; use the one that it was made from",
                code="distilled-teacher",
            )

    def predict(self, net: nn.Module, x_vp: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """See `VariancePreserving.predict`."""
        embeds = cond.tensors["prompt_embeds"]
        prediction: Tensor = net(
            x_vp.to(embeds.dtype),
            time,
            encoder_hidden_states=embeds,
            added_cond_kwargs=self._added(x_vp, cond),
            return_dict=False,
        )[0]
        return prediction.float()

    def _added(self, x_vp: Tensor, cond: Conditioning) -> dict[str, Tensor] | None:
        """Further conditioning of the U-Net."""
        return None

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D]."""
        embeds, _ = self.stock_encode(prompts, num_images_per_prompt=1)
        return Conditioning({"prompt_embeds": embeds})

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """See `Backbone.blocks`: down, middle, up."""
        down, up = (
            list(net.get_submodule(name).children()) for name in ("down_blocks", "up_blocks")
        )
        return [*down, net.get_submodule("mid_block"), *up]

    def lora_targets(self, net: nn.Module) -> list[str]:
        """See `Backbone.lora_targets`: attention and feed-forward layers only."""
        return [name for name in super().lora_targets(net) if ".transformer_blocks." in name]

    @classmethod
    def comfyui_lora(cls, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Backbone.comfyui_lora`: the names of sd-scripts (kohya), with the rank as alpha."""
        from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_kohya

        unet = {f"unet.{name}": weight for name, weight in layers.items()}
        renamed: dict[str, Tensor] = convert_state_dict_to_kohya(unet, StateDictType.PEFT)
        return renamed


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952)."""

    name: ClassVar[str] = "sdxl"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "sd_xl_base_1.0.safetensors",
        latent="EmptyLatentImage",
        betas=("scaled_linear", 0.00085, 0.012),
    )
    notes: ClassVar[str] = (
        "The network gets the picture's size, uncropped; the empty prompt may be zeros."
    )
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder_2", "text_encoder")
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "SDXL",
            "stabilityai/stable-diffusion-xl-base-1.0",
            2.57,
            _TIMES,
            "CLIP-L, CLIP-bigG",
            notes="Its autoencoder overflows in float16 and is held in float32 there.",
        ),
    )

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Wraps the pipeline; an autoencoder that overflows in float16 is held in float32."""
        super().__init__(pipe, source)
        vae = pipe.vae
        if vae is not None and vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()

    def _added(self, x_vp: Tensor, cond: Conditioning) -> dict[str, Tensor]:
        """Pooled text, and (original height, width, crop top, left, target height, width)."""
        pooled = cond.tensors["pooled"]
        height, width = (side * self.pipe.vae_scale_factor for side in x_vp.shape[-2:])
        sizes = pooled.new_tensor([height, width, 0, 0, height, width])
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], pooled [B, D]."""
        embeds, _, pooled, _ = self.stock_encode(prompts)
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def encode_null(self) -> Conditioning:
        """See `Backbone.encode_null`; zeros where the pipeline says so.

        The published model was trained with zeros in place of dropped captions, and the pipeline
        guides with them (force_zeros_for_empty_prompt).
        """
        null = super().encode_null()
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return null
        return Conditioning({name: torch.zeros_like(x) for name, x in null.tensors.items()})
