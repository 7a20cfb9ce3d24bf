"""LongCat-Image: packed latents, one text encoder, guidance that limits the velocity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.packing import Packed, model_clock, position_ids
from fewstep.models.published import SETTINGS, Published

_LORA_FILE = "pytorch_lora_weights.safetensors"


class LongCat(Packed):
    """LongCat-Image; prompt rewriting is off in training and in exports."""

    name: ClassVar[str] = "longcat"
    pipelines: ClassVar[tuple[str, ...]] = ("LongCatImagePipeline",)
    notes: ClassVar[str] = "Prompts are padded to 512 tokens and never rewritten."
    template_tokens: ClassVar[int] = 64
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "LongCat-Image",
            "meituan-longcat/LongCat-Image",
            6.27,
            "exponential, mu 1.15",
            "Qwen2.5-VL 7B",
            status=SETTINGS,
        ),
    )

    @classmethod
    def load_overrides(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """No processor: only prompt rewriting uses it, and it needs torchvision."""
        return {"text_processor": None}

    def stock_load(self) -> dict[str, Any]:
        """See `Backbone.stock_load`; the processor is left out there as well."""
        return self.load_overrides(self.source)

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; pictures are placed diagonally after the text."""
        embeds = cond.tensors["prompt_embeds"]
        # Where pictures begin is a constant of the pipeline, not the length of this text.
        start = int(self.pipe.tokenizer_max_length)
        places = torch.arange(embeds.shape[1], dtype=torch.float32, device=embeds.device)
        ids = position_ids(self.grid(xt.shape[1]), embeds.device, first=(start, start), kind=1)
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            timestep=model_clock(sigma, embeds.dtype),
            encoder_hidden_states=embeds,
            txt_ids=torch.stack([torch.zeros_like(places), places, places], dim=1),
            img_ids=ids,
            return_dict=False,
        )[0]
        return velocity.float()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D]."""
        # Always with prompts: diffusers 0.42 fails when it is given embeddings alone.
        embeds, _ = self.stock_encode(prompts)
        return Conditioning({"prompt_embeds": embeds})

    @property
    def text_tokens(self) -> int:
        """See `Backbone.text_tokens`; a constant of the pipeline."""
        return int(self.pipe.tokenizer_max_length)

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """Guided velocity [B, N, C], patch by patch no longer than the conditional one."""
        guided = super().guide(cond, null, scale)
        longest = cond.norm(dim=-1, keepdim=True)
        return guided * (longest / (guided.norm(dim=-1, keepdim=True) + 1e-8)).clamp(max=1)

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; prompt rewriting is on by default."""
        return super().stock_call(base_sigmas, height, width) | {"enable_prompt_rewrite": False}

    # The pipeline has no LoRA methods; its network does.

    def save_lora(self, folder: Path, layers: Mapping[str, Tensor]) -> None:
        """See `Backbone.save_lora`; names without the network's before them."""
        save_file(dict(layers), folder / _LORA_FILE, metadata={"format": "pt"})

    def load_lora(self, folder: Path) -> None:
        """See `Backbone.load_lora`."""
        self.pipe.transformer.load_lora_adapter(folder, prefix=None, weight_name=_LORA_FILE)

    def lora_call(self, address: str, file: str) -> str:
        """See `Backbone.lora_call`."""
        return f"pipe.transformer.load_lora_adapter({address!r}, prefix=None, weight_name={file!r})"
