"""Lumina-Image 2.0: the negative velocity on a reversed clock, Gemma 2 with a system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.schedules import Shift
from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone, shift_of
from fewstep.models.published import Published
from fewstep.utils.errors import FewstepError


class Lumina2(Backbone):
    """Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758)."""

    name: ClassVar[str] = "lumina2"
    pipelines: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline",)
    notes: ClassVar[str] = "guidance keeps the norm of each row, as the stock pipeline does"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer",)
    models: ClassVar[tuple[Published, ...]] = (
        Published("Lumina2", "Alpha-VLLM/Lumina-Image-2.0", 2.6, "static 6", "Gemma 2 2B"),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 256
    ) -> None:
        """Takes over the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length
        if pipe.text_encoder is not None:
            # Other kernels drop the cap on Gemma's logits; the default depends on the version.
            pipe.text_encoder.set_attn_implementation("eager")

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network answers x0 - eps, and its time 1 is the picture."""
        embeds = cond.tensors["prompt_embeds"]
        answer: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            timestep=1 - sigma,
            encoder_hidden_states=embeds,
            encoder_attention_mask=cond.tensors["mask"],
            return_dict=False,
        )[0]
        return -answer.float()

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """See `Backbone.guide`; every row of latents keeps the norm it has without guidance."""
        guided = super().guide(cond, null, scale)
        wanted = cond.norm(dim=-1, keepdim=True)
        return guided * (wanted / guided.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def _encode(self, prompts: list[str]) -> Conditioning:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def _encode_null(self) -> Conditioning:
        """See `Backbone._encode_null`; no system prompt comes before a negative prompt."""
        _, _, embeds, mask = self.pipe.encode_prompt(
            [""], max_sequence_length=self.max_sequence_length, device=self.device
        )
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """See `Backbone.overlong`; the system prompt takes its share of the tokens."""
        before = f"{self.pipe.system_prompt} <Prompt Start> "
        return super().overlong([before + prompt for prompt in prompts])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """[C, H / 8, W / 8]; the sides must be multiples of 16."""
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

    def shift(self, height: int, width: int) -> Shift:
        """See `Backbone.shift`; the stock pipeline counts channels where it means tokens."""
        channels = self.latent_shape(height, width)[0]
        return shift_of(self.pipe.scheduler.config, tokens=channels)

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; longer prompts than 256 tokens are cut unless told."""
        call = super().stock_call(base_sigmas, height, width)
        return call | {"max_sequence_length": self.max_sequence_length}

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; undoes the VAE's scale and shift first."""
        vae = self.pipe.vae
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1).float()
