"""Z-Image: the negative velocity on a reversed clock, lists of samples in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.comfyui import ComfyUI
from fewstep.models.latents import require_at_most
from fewstep.models.published import Published


class ZImage(Backbone):
    """Z-Image (Alibaba 2025, arXiv 2511.22699)."""

    name: ClassVar[str] = "zimage"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "z_image_bf16.safetensors",
        clip=("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}),
        vae="ae.safetensors",
        shift="ModelSamplingAuraFlow",
    )
    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    notes: ClassVar[str] = "The stock pipeline counts guidance from 0, so that its 4 is 5 here."
    max_sequence_length: int
    models: ClassVar[tuple[Published, ...]] = (
        Published("Z-Image", "Tongyi-MAI/Z-Image", 6.16, "static 6", "Qwen3 4B"),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 512
    ) -> None:
        """Wraps the pipeline; prompts are cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network predicts x0 - eps, and its time 1 is the picture."""
        embeds, lengths = cond.tensors["prompt_embeds"], cond.counted().lengths
        assert lengths is not None
        predictions: list[Tensor] = net(
            list(xt.to(embeds.dtype).unsqueeze(2)),  # one frame each: [C, 1, H, W]
            (1000 - sigma * 1000)
            / 1000,  # rounded as in the pipeline; the network multiplies again
            [tokens[:count] for tokens, count in zip(embeds, lengths.tolist(), strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(predictions).squeeze(2).float()

    @property
    def default_guidance(self) -> float:
        """See `Backbone.default_guidance`; the pipeline's scale plus 1."""
        return super().default_guidance + 1

    @property
    def patch_size(self) -> int:
        """See `Backbone.patch_size`; a constant of the stock pipeline."""
        return 2

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """See `Backbone.latent_shape`; positions are looked up in a table of the network's."""
        require_at_most(height, width, min(self.config.axes_lens[1:]) * self.size_multiple)
        return super().latent_shape(height, width)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], mask [B, L]."""
        # The pipeline writes its chat template into the list that it gets.
        embeds, _ = self.stock_encode(prompts)
        lengths = torch.tensor([len(tokens) for tokens in embeds], device=self.device)
        places = torch.arange(self.max_sequence_length, device=self.device)
        full = embeds[0].new_zeros(self.max_sequence_length, embeds[0].shape[1])
        padded = pad_sequence([full, *embeds], batch_first=True)[1:]
        return Conditioning({"prompt_embeds": padded, "mask": places < lengths[:, None]})

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """See `Backbone.overlong`; the chat template takes its share of the tokens."""
        wrapped = [
            self.pipe.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            for prompt in prompts
        ]
        return super().overlong(wrapped)

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; guidance is off at 0, not at 1."""
        return super().stock_call(base_sigmas, height, width) | {"guidance_scale": 0.0}
