"""Qwen-Image: packed latents, masked text of any length, a VAE for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import pad

from fewstep.core.types import Conditioning
from fewstep.models.comfyui import ComfyUI
from fewstep.models.latents import decode_images, denormalise
from fewstep.models.packing import Packed, model_clock, unpack
from fewstep.models.published import Published


class QwenImage(Packed):
    """Qwen-Image (Wu et al. 2025, arXiv 2508.02324)."""

    name: ClassVar[str] = "qwenimage"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "qwen_image_bf16.safetensors",
        clip=(
            "CLIPLoader",
            {"clip_name": "qwen_2.5_vl_7b.safetensors", "type": "qwen_image"},
        ),
        vae="qwen_image_vae.safetensors",
        shift="ModelSamplingAuraFlow",
    )
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    notes: ClassVar[str] = "Padding is masked, so that a shorter max_sequence_length is cheaper."
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "Qwen-Image",
            "Qwen/Qwen-Image",
            20.4,
            "exponential, mu 0.69 at 1024x1024, ends at 0.02",
            "Qwen2.5-VL 7B",
        ),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 512
    ) -> None:
        """Wraps the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network's timestep runs from 0 to 1."""
        embeds = cond.tensors["prompt_embeds"]
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            timestep=model_clock(sigma, embeds.dtype),
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=cond.tensors["mask"],
            img_shapes=[[(1, *self.grid(xt.shape[1]))]] * len(xt),
            return_dict=False,
        )[0]
        return velocity.float()

    def lora_targets(self, net: nn.Module) -> list[str]:
        """See `Backbone.lora_targets`; modulation is called `img_mod` and `txt_mod` here."""
        return [name for name in super().lora_targets(net) if "_mod." not in name]

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], mask [B, L]."""
        embeds, mask = self.stock_encode(prompts)
        if mask is None:  # the pipeline's way to say that nothing is padding
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        missing = self.max_sequence_length - embeds.shape[1]
        return Conditioning(
            {"prompt_embeds": pad(embeds, (0, 0, 0, missing)), "mask": pad(mask, (0, missing))}
        )

    @property
    def encoder_tokens(self) -> int:
        """See `Backbone.encoder_tokens`; it reads more than is kept."""
        return int(self.pipe.tokenizer_max_length + self.pipe.prompt_template_encode_start_idx)

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """Guided velocity [B, N, C], each patch with the norm of the conditional one."""
        guided = super().guide(cond, null, scale)
        length = guided.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return guided * (cond.norm(dim=-1, keepdim=True) / length)

    @property
    def default_guidance(self) -> float:
        """See `Backbone.default_guidance`; `guidance_scale` means something else here."""
        return float(self._call_default("true_cfg_scale"))

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; here guidance is `true_cfg_scale`."""
        call = super().stock_call(base_sigmas, height, width)
        del call["guidance_scale"]
        return call | {"true_cfg_scale": 1.0}

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; the VAE takes videos [B, C, 1, H, W] with a scale a channel."""
        vae, spatial = self.pipe.vae, unpack(latents.float(), self.grid(latents.shape[1]))
        return decode_images(vae, denormalise(vae, spatial[:, :, None]))[:, :, 0]
