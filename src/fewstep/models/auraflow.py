"""AuraFlow: velocity prediction, the VAE of SDXL, T5 prompts with their padding set to zero."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.comfyui import ComfyUI
from fewstep.models.latents import decode_images, require_at_most
from fewstep.models.published import Published
from fewstep.models.schedulers import FLOW_OF_ANY_SIZE


class AuraFlow(Backbone):
    """AuraFlow 0.1 to 0.3 (fal.ai 2024)."""

    name: ClassVar[str] = "auraflow"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "aura_flow_0.3.safetensors", latent="EmptyLatentImage", shift="ModelSamplingAuraFlow"
    )
    pipelines: ClassVar[tuple[str, ...]] = ("AuraFlowPipeline",)
    schedulers = FLOW_OF_ANY_SIZE
    notes: ClassVar[str] = "Padding is attended to: keep max_sequence_length the same everywhere."
    models: ClassVar[tuple[Published, ...]] = (
        Published("AuraFlow", "fal/AuraFlow-v0.3", 6.8, "static 1.73", "Pile-T5-XL"),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 256
    ) -> None:
        """Wraps the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network's timestep runs from 0 to 1."""
        embeds = cond.tensors["prompt_embeds"]
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            encoder_hidden_states=embeds,
            timestep=sigma,
            return_dict=False,
        )[0]
        return velocity.float()

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """See `Backbone.latent_shape`; positions are looked up in a table of the network's."""
        require_at_most(
            height, width, math.isqrt(self.config.pos_embed_max_size) * self.size_multiple
        )
        return super().latent_shape(height, width)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], zero where padded."""
        # The embeddings are multiplied by their mask, which the network does not get.
        embeds, _, _, _ = self.stock_encode(prompts)
        return Conditioning({"prompt_embeds": embeds})

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; the scale is undone in the VAE's precision."""
        vae = self.pipe.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()  # it overflows in half precision
        return decode_images(vae, latents.to(vae.dtype) / vae.config.scaling_factor)
