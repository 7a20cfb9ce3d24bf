"""SANA: velocity prediction, 32x autoencoder, Gemma 2 with an instruction before every prompt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.latents import decode_images
from fewstep.models.published import Published
from fewstep.models.schedulers import FLOW_OF_ANY_SIZE

_SIDES = 32  # the stock pipeline refuses sides that this does not divide


class Sana(Backbone):
    """SANA 0.6B and 1.6B (Xie et al. 2024, arXiv 2410.10629)."""

    name: ClassVar[str] = "sana"
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    schedulers = FLOW_OF_ANY_SIZE
    notes: ClassVar[str] = "Students use Euler steps, whatever solver the teacher came with."
    template_tokens: ClassVar[int] = 256  # the instruction
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "SANA 0.6B",
            "Efficient-Large-Model/Sana_600M_1024px_diffusers",
            0.6,
            "static 3",
            "Gemma 2 2B",
        ),
        Published(
            "SANA 1.6B",
            "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            1.6,
            "static 3",
            "Gemma 2 2B",
        ),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 300
    ) -> None:
        """Wraps the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length
        if pipe.text_encoder is not None:
            # Other kernels drop the cap on Gemma's logits; the default depends on the version.
            pipe.text_encoder.set_attn_implementation("eager")

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network's timestep runs from 0 to 1000, times a scale."""
        embeds = cond.tensors["prompt_embeds"]
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            encoder_hidden_states=embeds,
            encoder_attention_mask=cond.tensors["mask"],
            timestep=sigma * 1000 * self.config.timestep_scale,
            return_dict=False,
        )[0]
        # A network that also predicts its variance has twice the channels.
        return velocity[:, : xt.shape[1]].float()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], mask [B, L]."""
        # The pipeline's call puts it before every prompt; encode_prompt by itself does not.
        instruction = self._call_default("complex_human_instruction")
        embeds, mask, _, _ = self.stock_encode(prompts, complex_human_instruction=instruction)
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def encode_null(self) -> Conditioning:
        """See `Backbone.encode_null`; negative prompts have no instruction."""
        _, _, embeds, mask = self.stock_encode([""], do_classifier_free_guidance=True)
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    @property
    def size_multiple(self) -> int:
        """See `Backbone.size_multiple`; the stock pipeline insists on multiples of 32."""
        return math.lcm(_SIDES, super().size_multiple)

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; sizes are not rounded to the nearest trained one."""
        return super().stock_call(base_sigmas, height, width) | {"use_resolution_binning": False}

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; the scale is undone in the autoencoder's precision."""
        vae = self.pipe.vae
        return decode_images(vae, latents.to(vae.dtype) / vae.config.scaling_factor)
