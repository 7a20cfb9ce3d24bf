"""FLUX.2: dev (guidance is an input, Mistral reads the prompt) and klein (true guidance, Qwen3)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils.import_utils import is_torchvision_available

from fewstep.core.schedules import Shift
from fewstep.core.types import Conditioning
from fewstep.models.comfyui import ComfyUI
from fewstep.models.configs import has_component, read_index
from fewstep.models.latents import decode_images
from fewstep.models.packing import Packed, model_clock, position_ids, unpack
from fewstep.models.published import Published
from fewstep.models.shift import FlowSettings
from fewstep.utils.errors import FewstepError

_SHIFT = "exponential, mu 2.29 at 1024x1024 in 4 steps"


class _Flux2(Packed):
    """The common part of both families: network, position ids, autoencoder and shift.

    The stock pipeline's shift depends on the number of steps and on the size. A student is trained
    on one grid, so the shift of `shift_steps` steps is used at any number of steps; `stock_call`
    passes that number beside the sigmas, of which there may be more or fewer. Above 4300 image
    tokens, the number of steps does not matter.
    """

    comfyui_prefix: ClassVar[str | None] = "transformer."
    drawn_patch: ClassVar[int] = 1
    max_sequence_length: int

    def __init__(
        self,
        pipe: DiffusionPipeline,
        source: Path,
        *,
        max_sequence_length: int = 512,
        shift_steps: int = 4,
    ) -> None:
        """Wraps the pipeline.

        Args:
            pipe: The pipeline.
            source: Its folder.
            max_sequence_length: Tokens that prompts, template included, are padded or cut to.
            shift_steps: The number of steps whose shift is used.
        """
        super().__init__(pipe, source)
        if shift_steps < 1:
            raise FewstepError(
                f"shift_steps must be at least 1, not {shift_steps}", code="out-of-range"
            )
        self.max_sequence_length = max_sequence_length
        self.shift_steps = shift_steps

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; ids are (0, row, column, 0), and (0, 0, 0, i) for token i."""
        embeds = cond.tensors["prompt_embeds"]
        ids = position_ids(self.grid(xt.shape[1]), device=xt.device)
        places = torch.arange(embeds.shape[1], device=xt.device)
        velocity: Tensor = net(
            hidden_states=xt.to(embeds.dtype),
            encoder_hidden_states=embeds,
            timestep=model_clock(sigma, embeds.dtype),
            img_ids=nn.functional.pad(ids, (0, 1)),
            txt_ids=nn.functional.pad(places[:, None], (3, 0)),
            guidance=cond.tensors.get("guidance"),
            return_dict=False,
        )[0]
        return velocity.float()

    def _embeds(self, prompts: list[str]) -> Tensor:
        """Hidden states of three layers of the text encoder, concatenated, [B, L, 3 D]."""
        embeds: Tensor = self.stock_encode(prompts)[0]
        return embeds

    @abstractmethod
    def _in_template(self, prompt: str) -> str:
        """A prompt in the chat template, as the tokenizer gets it."""

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """See `Backbone.overlong`; the chat template takes its share of the tokens."""
        if not prompts:
            return []
        tokenizer = getattr(self.pipe.tokenizer, "tokenizer", self.pipe.tokenizer)
        texts = [self._in_template(prompt) for prompt in prompts]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)
        return [len(tokens) > self.max_sequence_length for tokens in encoded["input_ids"]]

    def shift(self, height: int, width: int) -> Shift:
        """See `Scheduled.shift`; of `shift_steps` steps."""
        settings: FlowSettings = self.scheduler_settings
        if not settings.use_dynamic_shifting:
            return super().shift(height, width)
        mu = compute_empirical_mu(self.image_tokens(height, width), self.shift_steps)
        return settings.at_mu(float(mu))

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; the number of steps only sets the shift."""
        return super().stock_call(base_sigmas, height, width) | {
            "num_inference_steps": self.shift_steps
        }

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; undoes the batch normalisation and the packing."""
        vae = self.pipe.vae
        scale = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt()
        latents = latents.float() * scale + vae.bn.running_mean.float()
        spatial = unpack(latents, self.grid(latents.shape[1]))
        return decode_images(vae, spatial)


class Flux2(_Flux2):
    """FLUX.2-dev (Black Forest Labs 2025)."""

    name: ClassVar[str] = "flux2"
    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "flux2-dev.safetensors",
        clip=(
            "CLIPLoader",
            {"clip_name": "mistral_3_small_flux2.safetensors", "type": "flux2"},
        ),
        vae="flux2-vae.safetensors",
        latent="EmptyFlux2LatentImage",
        shift="ModelSamplingFlux",
    )
    guidance: ClassVar[str] = "embedded"
    notes: ClassVar[str] = "The shift is that of four steps, at any number of steps."
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "FLUX.2-dev", "black-forest-labs/FLUX.2-dev", 32.2, _SHIFT, "Mistral Small 3 24B"
        ),
    )

    def __init__(
        self,
        pipe: DiffusionPipeline,
        source: Path,
        *,
        max_sequence_length: int = 512,
        guidance: float | None = None,
        shift_steps: int = 4,
    ) -> None:
        """Wraps the pipeline.

        Args:
            pipe: The pipeline.
            source: Its folder.
            max_sequence_length: Tokens that prompts, system message included, are padded or cut to.
            guidance: Guidance scale given to the network; None: the stock pipeline's default.
            shift_steps: The number of steps whose shift is used.
        """
        super().__init__(
            pipe, source, max_sequence_length=max_sequence_length, shift_steps=shift_steps
        )
        self.guidance_scale = self.default_guidance if guidance is None else float(guidance)
        if pipe.tokenizer is None and self.device.type != "meta":  # a meta pipeline needs none
            pipe.tokenizer = _tokenizer(source)

    @classmethod
    def load_overrides(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """See `Backbone.load_overrides`; skips a processor that lacks torchvision.

        Only text is tokenized, for which the tokenizer inside it is enough.
        """
        index = read_index(folder)
        is_processor = has_component(index, "tokenizer") and str(index["tokenizer"][1]).endswith(
            "Processor"
        )
        return {"tokenizer": None} if is_processor and not is_torchvision_available() else {}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D], guidance [B]."""
        guidance = torch.full((len(prompts),), self.guidance_scale, device=self.device)
        return Conditioning({"prompt_embeds": self._embeds(prompts), "guidance": guidance})

    def _in_template(self, prompt: str) -> str:
        [messages] = format_input([prompt], system_message=self.pipe.system_message)
        return str(self.pipe.tokenizer.apply_chat_template(messages, tokenize=False))

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; the guidance is what `encode` sets."""
        return super().stock_call(base_sigmas, height, width) | {
            "guidance_scale": self.guidance_scale
        }


class Flux2Klein(_Flux2):
    """FLUX.2-klein, the base models (Black Forest Labs 2026)."""

    name: ClassVar[str] = "klein"
    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    comfyui: ClassVar[ComfyUI | None] = ComfyUI(
        "flux-2-klein-base-4b.safetensors",
        clip=("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors", "type": "flux2"}),
        vae="flux2-vae.safetensors",
        latent="EmptyFlux2LatentImage",
        shift="ModelSamplingFlux",
    )
    notes: ClassVar[str] = (
        "Base models only; the shift is that of four steps, at any number of steps."
    )
    models: ClassVar[tuple[Published, ...]] = (
        Published(
            "FLUX.2-klein base 4B",
            "black-forest-labs/FLUX.2-klein-base-4B",
            3.88,
            _SHIFT,
            "Qwen3 4B",
        ),
        Published(
            "FLUX.2-klein base 9B",
            "black-forest-labs/FLUX.2-klein-base-9B",
            9.08,
            _SHIFT,
            "Qwen3 8B",
        ),
    )

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """See `Backbone.encode_prompts`: prompt_embeds [B, L, D]."""
        return Conditioning({"prompt_embeds": self._embeds(prompts)})

    def _in_template(self, prompt: str) -> str:
        text = self.pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return str(text)

    @property
    def default_guidance(self) -> float:
        """See `Backbone.default_guidance`; 1 for a model that is distilled already."""
        return 1.0 if self.pipe.config.get("is_distilled") else super().default_guidance


def _tokenizer(source: Path) -> Any:
    """The tokenizer inside the folder's processor.

    Raises:
        FewstepError: It cannot be read without the processor.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source / "tokenizer", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FewstepError(
            f"{source / 'tokenizer'}: not readable without torchvision, install it: {reason}",
            code="missing-dependency",
        ) from error
