"""FLUX.1: packed latents, CLIP and T5, guidance as an input of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.comfyui import ComfyUI
from fewstep.models.packing import Packed, model_clock, position_ids
from fewstep.models.published import Published


class Flux(Packed):
    """FLUX.1-dev, and FLUX.1-schnell, whose network has no guidance input."""

    name: ClassVar[str] = "flux"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "flux1-dev.safetensors",
        clip=(
            "DualCLIPLoader",
            {
                "clip_name1": "t5xxl_fp16.safetensors",
                "clip_name2": "clip_l.safetensors",
                "type": "flux",
            },
        ),
        vae="ae.safetensors",
        shift="ModelSamplingFlux",
    )
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    guidance: ClassVar[str] = "embedded"
    notes: ClassVar[str] = "Padding is attended to: keep max_sequence_length the same everywhere."
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "FLUX.1-dev",
            "black-forest-labs/FLUX.1-dev",
            11.9,
            "exponential, mu 1.15 at 1024x1024",
            "CLIP-L, T5-XXL",
        ),
    )
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    def __init__(
        self,
        pipe: DiffusionPipeline,
        source: Path,
        *,
        max_sequence_length: int = 512,
        guidance: float = 3.5,
    ) -> None:
        """Wraps the pipeline.

        Args:
            pipe: The loaded pipeline.
            source: Its folder.
            max_sequence_length: T5 tokens that prompts are padded or cut to.
            guidance: Guidance scale given to student, teacher and fake teacher.
        """
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length
        self.guidance_scale = float(guidance)

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network multiplies time and guidance by 1000."""
        embeds = cond.tensors["prompt_embeds"]
        # The pipeline has its ids in the network's precision.
        ids = position_ids(self.grid(xt.shape[1]), embeds.device).to(embeds.dtype)
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            timestep=model_clock(sigma, embeds.dtype),
            guidance=cond.tensors.get("guidance"),
            pooled_projections=cond.tensors["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=ids.new_zeros(embeds.shape[1], 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        return velocity.float()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], pooled [B, D], guidance [B]."""
        embeds, pooled, _ = self.stock_encode(prompts)
        tensors = {"prompt_embeds": embeds, "pooled": pooled}
        if self.config.guidance_embeds:
            tensors["guidance"] = torch.full(
                (len(prompts),), self.guidance_scale, device=self.device
            )
        return Conditioning(tensors)

    @property
    def default_guidance(self) -> float:
        """The guidance scale given to the network; 1 where it has no such input."""
        return self.guidance_scale if self.config.guidance_embeds else 1.0

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; guidance is that of `encode`."""
        call = super().stock_call(base_sigmas, height, width)
        return call | {"guidance_scale": self.guidance_scale}
