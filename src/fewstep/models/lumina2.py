"""Lumina-Image 2.0: the negative velocity on a reversed clock, Gemma 2 with a system prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.schedules import Shift
from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.comfyui import ComfyUI
from fewstep.models.latents import require_at_most
from fewstep.models.lora import renamed_lora
from fewstep.models.published import Published


class Lumina2(Backbone):
    """Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758)."""

    name: ClassVar[str] = "lumina2"
    pipelines: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "lumina_2.safetensors",
        shift="ModelSamplingAuraFlow",
        encode=("CLIPTextEncodeLumina2", {"system_prompt": "superior"}),
        prompt="user_prompt",
    )
    notes: ClassVar[str] = (
        "Guidance keeps the norm of each row of latents, as in the stock pipeline."
    )
    models: ClassVar[tuple[Published, ...]] = (
        Published("Lumina2", "Alpha-VLLM/Lumina-Image-2.0", 2.6, "static 6", "Gemma 2 2B"),
    )

    def __init__(
        self, pipe: DiffusionPipeline, source: Path, *, max_sequence_length: int = 256
    ) -> None:
        """Wraps the pipeline; prompts are padded or cut to `max_sequence_length` tokens."""
        super().__init__(pipe, source)
        self.max_sequence_length = max_sequence_length
        if pipe.text_encoder is not None:
            # Other kernels drop the cap on Gemma's logits; the default depends on the version.
            pipe.text_encoder.set_attn_implementation("eager")

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; the network predicts x0 - eps, and its time 1 is the picture."""
        embeds = cond.tensors["prompt_embeds"]
        with _lengths_on_host(net, cond):
            prediction: Tensor = net(
                hidden_states=xt.to(embeds.dtype),
                timestep=1 - sigma,
                encoder_hidden_states=embeds,
                encoder_attention_mask=cond.tensors["mask"],
                return_dict=False,
            )[0]
        return -prediction.float()

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """See `Backbone.guide`; each row of latents keeps the norm of the conditional one."""
        guided = super().guide(cond, null, scale)
        wanted = cond.norm(dim=-1, keepdim=True)
        return guided * (wanted / guided.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """See `Backbone.latent_shape`; positions are looked up in a table of the network's."""
        require_at_most(height, width, min(self.config.axes_lens[1:]) * self.size_multiple)
        return super().latent_shape(height, width)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], mask [B, L]."""
        embeds, mask, _, _ = self.stock_encode(prompts)
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def encode_null(self) -> Conditioning:
        """See `Backbone.encode_null`; no system prompt comes before a negative prompt."""
        _, _, embeds, mask = self.stock_encode([""], do_classifier_free_guidance=True)
        return Conditioning({"prompt_embeds": embeds, "mask": mask})

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """See `Backbone.overlong`; the system prompt takes its share of the tokens."""
        before = f"{self.pipe.system_prompt} <Prompt Start> "
        return super().overlong([before + prompt for prompt in prompts])

    def shift(self, height: int, width: int) -> Shift:
        """See `Scheduled.shift`; the stock pipeline passes channels in place of tokens."""
        channels = self.latent_shape(height, width)[0]
        shift: Shift = self.scheduler_settings.at(channels)
        return shift

    @classmethod
    def comfyui_lora(cls, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Backbone.comfyui_lora`: the original names, with query, key and value in one."""
        names = {"attn.to_out.0": "attention.out"}
        names |= {f"feed_forward.linear_{i}": f"feed_forward.w{i}" for i in (1, 2, 3)}
        stacks = {"attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v")}
        return renamed_lora(layers, "diffusion_model.", names, stacks)


@contextmanager
def _lengths_on_host(net: nn.Module, cond: Conditioning) -> Iterator[None]:
    """Context in which the network's positions need nothing from the device.

    They are made from the sums of the mask, as numbers of Python, and from tables that diffusers
    keeps on the CPU; both would wait for all that the device has yet to do, in every call.
    """
    positions: Any = getattr(net, "rope_embedder", None)
    if positions is None:  # no network of diffusers
        yield
        return
    embeds, lengths = cond.tensors["prompt_embeds"], cond.counted().lengths
    assert lengths is not None
    mask = torch.arange(embeds.shape[1]) < lengths[:, None]
    positions.freqs_cis = [table.to(embeds.device) for table in positions.freqs_cis]
    handle = positions.register_forward_pre_hook(lambda _, args: (args[0], mask))
    try:
        yield
    finally:
        handle.remove()
