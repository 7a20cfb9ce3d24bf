"""Stable Diffusion 3 and 3.5: velocity prediction, spatial latents, three text encoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.comfyui import ComfyUI
from fewstep.models.configs import has_component, read_index
from fewstep.models.latents import require_at_most
from fewstep.models.published import SETTINGS, Published

_ENCODERS = "CLIP-L, CLIP-bigG, T5-XXL"
_WITHOUT_T5: dict[str, None] = {"text_encoder_3": None, "tokenizer_3": None}


class SD3(Backbone):
    """SD3-Medium, SD3.5-Medium and SD3.5-Large (Esser et al. 2024, arXiv 2403.03206)."""

    name: ClassVar[str] = "sd3"
    comfyui_prefix: ClassVar[str | None] = "transformer."
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "sd3_medium.safetensors",
        clip=(
            "TripleCLIPLoader",
            {
                "clip_name1": "clip_l.safetensors",
                "clip_name2": "clip_g.safetensors",
                "clip_name3": "t5xxl_fp16.safetensors",
            },
        ),
        shift="ModelSamplingSD3",
    )
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    notes: ClassVar[str] = "Padding is attended to: keep max_sequence_length the same everywhere."
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional_names: ClassVar[tuple[str, ...]] = ("text_encoder_3",)
    max_sequence_length: int
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "SD3-Medium",
            "stabilityai/stable-diffusion-3-medium-diffusers",
            2.03,
            "static 3",
            _ENCODERS,
            status=SETTINGS,
        ),
        Published(
            "SD3.5-Medium", "stabilityai/stable-diffusion-3.5-medium", 2.24, "static 3", _ENCODERS
        ),
        Published(
            "SD3.5-Large", "stabilityai/stable-diffusion-3.5-large", 8.06, "static 3", _ENCODERS
        ),
    )

    def __init__(
        self,
        pipe: DiffusionPipeline,
        source: Path,
        *,
        max_sequence_length: int = 256,
        t5: bool = True,
    ) -> None:
        """Wraps the pipeline.

        Args:
            pipe: The pipeline.
            source: Its folder.
            max_sequence_length: T5 tokens that prompts are padded or cut to.
            t5: Whether to use T5. SD3 was trained to work without it as well ("Flexible Text
                Encoders" in its paper), which saves most of the encoders' memory; the embeddings
                of its tokens are zeros then.
        """
        without = self.load_overrides(source, t5=t5)
        pipe.register_modules(**without)
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length
        self.t5 = not without

    @classmethod
    def load_overrides(cls, folder: Path, *, t5: bool = True, **options: Any) -> dict[str, Any]:
        """See `Backbone.load_overrides`; a folder may have been saved without T5."""
        index = read_index(folder)
        has_t5 = all(has_component(index, name) for name in _WITHOUT_T5)
        return {} if t5 and has_t5 else dict(_WITHOUT_T5)

    def stock_load(self) -> dict[str, Any]:
        """See `Backbone.stock_load`; without T5, diffusers must not load it either."""
        return self.load_overrides(self.source, t5=self.t5)

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network's timestep runs from 0 to 1000."""
        dtype = cond.tensors["prompt_embeds"].dtype
        velocity: Tensor = net(
            hidden_states=xt.to(dtype),
            timestep=sigma * 1000,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            pooled_projections=cond.tensors["pooled"],
            return_dict=False,
        )[0]
        return velocity.float()

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """See `Backbone.latent_shape`; positions are looked up in a table of the network's."""
        require_at_most(height, width, self.config.pos_embed_max_size * self.size_multiple)
        return super().latent_shape(height, width)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, 77 + L, D], pooled [B, D]."""
        embeds, _, pooled, _ = self.stock_encode(prompts, prompt_2=None, prompt_3=None)
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def most_tokens(self, tokenizer: str) -> float:
        """See `Backbone.most_tokens`; the CLIP encoders always read as much as they can."""
        return super().most_tokens(tokenizer) if tokenizer == "tokenizer_3" else math.inf

    @property
    def text_tokens(self) -> int:
        """See `Backbone.text_tokens`; CLIP's tokens stand before T5's."""
        return self.tokenizer_length() + self.max_sequence_length
