"""PixArt-Sigma: a transformer that predicts eps and its variance, T5, masked padding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.comfyui import ComfyUI
from fewstep.models.published import Published
from fewstep.models.variance_preserving import VariancePreserving


class PixArt(VariancePreserving):
    """PixArt-Sigma (Chen et al. 2024, arXiv 2403.04692)."""

    name: ClassVar[str] = "pixart"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "pixart_sigma_xl_2_1024_ms.safetensors",
        clip=("CLIPLoader", {"clip_name": "t5xxl_fp16.safetensors", "type": "pixart"}),
        vae="sdxl_vae.safetensors",
        latent="EmptyLatentImage",
        betas=("linear", 0.0001, 0.02),
    )
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtSigmaPipeline",)
    notes: ClassVar[str] = "Prompts are not cleaned; a LoRA is exported merged."
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "PixArt-Sigma",
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            0.6,
            "trained times 0..999",
            "T5-XXL",
        ),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 300
    ) -> None:
        """Wraps the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length

    def predict(self, net: nn.Module, x_vp: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """See `VariancePreserving.predict`; the channels of the learned variance are dropped."""
        embeds = cond.tensors["prompt_embeds"]
        prediction: Tensor = net(
            x_vp.to(embeds.dtype),
            encoder_hidden_states=embeds,
            encoder_attention_mask=cond.tensors["mask"],
            timestep=time,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, : x_vp.shape[1]].float()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], mask [B, L]."""
        embeds, mask, _, _ = self.stock_encode(prompts, clean_caption=False)
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `VariancePreserving.stock_call`.

        Sizes are not rounded to the nearest trained one, and prompts are not cleaned, which would
        need libraries that may not be installed.
        """
        return super().stock_call(base_sigmas, height, width) | {
            "use_resolution_binning": False,
            "clean_caption": False,
        }

    @property
    def size_multiple(self) -> int:
        """See `Backbone.size_multiple`; the stock pipeline insists on 8 as well."""
        return math.lcm(super().size_multiple, self.pipe.vae_scale_factor * self.patch_size)
