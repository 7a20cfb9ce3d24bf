"""AuraFlow: velocity prediction, the VAE of SDXL, T5 prompts with their padding set to zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.published import Published
from fewstep.utils.errors import FewstepError


class AuraFlow(Backbone):
    """AuraFlow 0.1 to 0.3 (fal.ai 2024)."""

    name: ClassVar[str] = "auraflow"
    pipelines: ClassVar[tuple[str, ...]] = ("AuraFlowPipeline",)
    notes: ClassVar[str] = "padding is attended to: keep max_sequence_length the same everywhere"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer",)
    models: ClassVar[tuple[Published, ...]] = (
        Published("AuraFlow", "fal/AuraFlow-v0.3", 6.8, "static 1.73", "Pile-T5-XL"),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 256
    ) -> None:
        """Takes over the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network's clock runs from 0 to 1."""
        embeds = cond.tensors["prompt_embeds"]
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            encoder_hidden_states=embeds,
            timestep=sigma,
            return_dict=False,
        )[0]
        return velocity.float()

    def _encode(self, prompts: list[str]) -> Conditioning:
        # The embeddings come multiplied by their mask, which the network is not shown.
        embeds, _, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": embeds})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """[C, H / 8, W / 8]; the sides must be multiples of the VAE's factor times the patch."""
        factor = self.pipe.vae_scale_factor
        config = self.pipe.transformer.config
        multiple = factor * config.patch_size
        if height % multiple or width % multiple:
            raise FewstepError(
                f"{height}x{width}: height and width must be multiples of {multiple} for this model"
            )
        return (config.in_channels, height // factor, width // factor)

    def image_tokens(self, height: int, width: int) -> int:
        """See `Backbone.image_tokens`."""
        return super().image_tokens(height, width) // self.pipe.transformer.config.patch_size**2

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; the length is 256 in the stock pipeline unless told."""
        call = super().stock_call(base_sigmas, height, width)
        return call | {"max_sequence_length": self.max_sequence_length}

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; undoes the VAE's scale first."""
        vae = self.pipe.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()  # it overflows in half precision
        images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1).float()
