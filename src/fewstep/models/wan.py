"""Wan 2.1, text to video: five axes, and a pipeline that takes no sigmas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline, FlowMapEulerDiscreteScheduler
from torch import Tensor, nn

from fewstep.core.schedules import Shift, StaticShift, Terminal
from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.comfyui import ComfyUI
from fewstep.models.latents import decode_images, denormalise, require_at_most, require_multiple
from fewstep.models.lora import renamed_lora
from fewstep.models.published import Published
from fewstep.models.schedulers import FLOW_OF_ANY_SIZE
from fewstep.models.shift import FlowSettings
from fewstep.utils.errors import FewstepError

_SIDE = 16  # the stock pipeline insists on multiples of it, whatever the model


class Wan(Backbone):
    """Wan 2.1 (Alibaba 2025, arXiv 2503.20314)."""

    name: ClassVar[str] = "wan"
    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "wan2.1_t2v_1.3B_bf16.safetensors",
        clip=("CLIPLoader", {"clip_name": "umt5_xxl_fp16.safetensors", "type": "wan"}),
        vae="wan_2.1_vae.safetensors",
        latent="EmptyHunyuanLatentVideo",
        shift="ModelSamplingSD3",
    )
    schedulers = FLOW_OF_ANY_SIZE
    notes: ClassVar[str] = "Text to video; previews and scores use the middle frame."
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "Wan 2.1 T2V 1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.42, "static 3", "UMT5-XXL"
        ),
        Published(
            "Wan 2.1 T2V 14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers", 14.3, "static 3", "UMT5-XXL"
        ),
    )
    task: ClassVar[str] = "text-to-video"

    def __init__(
        self,
        pipe: DiffusionPipeline,
        source: Path,
        *,
        max_sequence_length: int = 512,
        frames: int = 81,
    ) -> None:
        """Wraps the pipeline.

        Args:
            pipe: The pipeline.
            source: Its folder.
            max_sequence_length: Tokens that prompts are padded or cut to.
            frames: Frames of a video: 1 more than a multiple of the autoencoder's temporal factor.

        Raises:
            FewstepError: Two denoisers, or a number of frames that does not fit.
        """
        super().__init__(pipe, source)
        if pipe.transformer_2 is not None or pipe.config.get("boundary_ratio") is not None:
            raise FewstepError(
                f"{source}: two denoisers (Wan 2.2); only models with one can be distilled",
                code="unsupported",
            )
        factor = int(pipe.vae_scale_factor_temporal)
        if frames < 1 or (frames - 1) % factor:
            raise FewstepError(
                f"frames must be 1 more than a multiple of {factor}, not {frames}",
                code="out-of-range",
            )
        self.max_sequence_length = max_sequence_length
        self.frames = frames

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; xt is [B, C, T, h, w], the network's timestep runs to 1000."""
        embeds = cond.tensors["prompt_embeds"]
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            timestep=sigma * 1000,
            encoder_hidden_states=embeds,
            return_dict=False,
        )[0]
        return velocity.float()

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D]."""
        embeds, _ = self.stock_encode(prompts)
        return Conditioning({"prompt_embeds": embeds})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """[C, T, H / 8, W / 8], T = 1 + (frames - 1) / 4, at Wan's own factors."""
        factor = int(self.pipe.vae_scale_factor_spatial)
        patches = [factor * patch for patch in self.config.patch_size[1:]]
        require_multiple(height, width, math.lcm(_SIDE, *patches))
        require_at_most(height, width, self.config.rope_max_seq_len * min(patches))
        length = 1 + (self.frames - 1) // int(self.pipe.vae_scale_factor_temporal)
        return int(self.config.in_channels), length, height // factor, width // factor

    def image_tokens(self, height: int, width: int) -> int:
        """See `Scheduled.image_tokens`; patches have three sides."""
        latents = math.prod(self.latent_shape(height, width)[1:])
        return latents // math.prod(self.config.patch_size)

    def effective_shift(
        self, value: float | None, height: int, width: int, *, terminal: Terminal = "model"
    ) -> Shift:
        """See `Scheduled.effective_shift`; a grid must end by its shift alone."""
        return StaticShift(self.student_scheduler(value, terminal).config["shift"])

    def student_scheduler(
        self, shift: float | None = None, terminal: Terminal = "model"
    ) -> FlowMapEulerDiscreteScheduler:
        """See `Scheduled.student_scheduler`; plain Euler steps on the grid 1, 1 - 1/n, ..., 1/n.

        The stock pipeline sets nothing but the number of steps. With that alone, UniPC takes steps
        of higher order, and FlowMatchEuler a grid whose last step is wasted right above 0.

        Raises:
            FewstepError: The grid is to end elsewhere, which no such scheduler can do.
        """
        own: FlowSettings = self.scheduler_settings.for_student(shift, terminal)
        if own.shift_terminal is not None:
            raise FewstepError(
                f"grid.terminal: the stock pipeline of {self.name} cannot end at a noise level of "
                "its own; set it to null",
                code="unsupported",
            )
        return FlowMapEulerDiscreteScheduler(shift=own.shift)

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; without sigmas, which the pipeline does not take."""
        call = super().stock_call(base_sigmas, height, width) | {
            "num_frames": self.frames,
            "output_type": "pil",
        }
        del call["sigmas"]
        return call

    def stock_result(self) -> tuple[str, str]:
        """See `Backbone.stock_result`; an animation of 16 frames a second."""
        keep = (
            'image[0].save("video.webp", save_all=True, append_images=image[1:], '
            "duration=62, loop=0)"
        )
        return ".frames[0]", keep

    def decode_video(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode_video`; undoes the normalisation of latents first."""
        return decode_images(self.pipe.vae, denormalise(self.pipe.vae, latents))

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; the middle frame."""
        videos = self.decode_video(latents)
        return videos[:, :, videos.shape[2] // 2]

    @classmethod
    def comfyui_lora(cls, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Backbone.comfyui_lora`: the original names."""
        names = {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            names |= {f"{ours}.to_{each}": f"{theirs}.{each}" for each in "qkv"}
            names[f"{ours}.to_out.0"] = f"{theirs}.o"
        return renamed_lora(layers, "diffusion_model.", names)
