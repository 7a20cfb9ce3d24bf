"""The interface of a model family: from a diffusers pipeline to a velocity field and back."""

from __future__ import annotations

import inspect
import math
import re
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.core.schedules import Terminal
from fewstep.core.solver import classifier_free, guided
from fewstep.core.types import Conditioning, VelocityFn
from fewstep.models.encoding import Encoding
from fewstep.models.latents import decode_images, require_multiple
from fewstep.models.lora import Adapted
from fewstep.models.published import Published
from fewstep.models.saving import write_pipeline
from fewstep.models.scheduled import Scheduled

_MODULATION = re.compile(r"norm|adaln|modulation", re.IGNORECASE)


class Backbone(Scheduled, Adapted, Encoding):
    """A loaded diffusers pipeline behind one interface: ``velocity(net, xt, sigma, cond) -> v``.

    There is one subclass per model family, in a file of its own. It alone knows timesteps, signs,
    packing, position ids, VAE constants and text encoders. The network is an argument of
    `velocity`, so that one object serves student, teacher and fake teacher.

    The defaults suit a transformer on spatial latents [B, C, h, w] with one text encoder.

    Attributes:
        name: Short name of the family; a plug-in's entry point has the same name.
        pipelines: Names of the diffusers pipeline classes that the family understands.
        pipeline_class: The pipeline class itself where it is not part of diffusers.
        prediction: What the network predicts: "velocity", "eps" or "v".
        guidance: How the teacher is guided: "cfg" (classifier-free, two evaluations) or "embedded"
            (the guidance scale is an input of the network).
        notes: One sentence for the table of models.
        task: The task's name on the Hugging Face Hub.
        net_name: The component of the pipeline that is trained.
        encoder_names: Components that are text encoders; the first one is always present.
        tokenizer_names: Components that are their tokenizers.
        optional_names: Text encoders that a folder may have been saved without.
        models: Published models of the family.
        max_sequence_length: Tokens that prompts are padded or cut to; None: no such option.
        template_tokens: Tokens at most that the pipeline adds to a prompt beyond `text_tokens`.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    prediction: ClassVar[str] = "velocity"
    guidance: ClassVar[str] = "cfg"
    notes: ClassVar[str] = ""
    task: ClassVar[str] = "text-to-image"
    net_name: ClassVar[str] = "transformer"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer",)
    optional_names: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[Published, ...]] = ()
    pipeline_class: ClassVar[type[DiffusionPipeline]] = DiffusionPipeline
    max_sequence_length: int | None = None
    template_tokens: ClassVar[int] = 0

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Wraps a loaded pipeline; `source` is the folder that it was loaded from."""
        self.pipe = pipe
        self.source = source
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(name == self.net_name).eval()

    @classmethod
    def load_overrides(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Components that are not loaded from the folder, and what is taken instead; None: nothing.

        Args:
            folder: The pipeline's folder.
            options: The family's options, as its constructor takes them.
        """
        return {}

    # ------------------------------------------------------------------ the network

    @property
    def net(self) -> nn.Module:
        """The pretrained network, as loaded."""
        return getattr(self.pipe, self.net_name)

    @property
    def config(self) -> Any:
        """The configuration of the network; there also where the network was not loaded."""
        return getattr(self.pipe, self.net_name).config

    @property
    def device(self) -> torch.device:
        """The device of the pretrained network, or of the first text encoder without one."""
        net, encoder = self.net, getattr(self.pipe, self.encoder_names[0], None)
        return next((net if isinstance(net, nn.Module) else encoder).parameters()).device

    def to(self, device: torch.device | str) -> Backbone:
        """Moves every network of the pipeline."""
        self.pipe.to(device)
        self.move_null(device)
        return self

    @abstractmethod
    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity v = eps - x0 at xt, Eq. 2.

        Args:
            net: Any network of this architecture.
            xt: Noisy latents as the denoiser takes them, [B, ...], float32.
            sigma: Noise levels in [0, 1], [B].
            cond: Encoded prompts of the same batch.

        Returns:
            float32, the shape of xt.
        """

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """The repeated blocks, in order; each is checkpointed, compiled and sharded on its own."""
        lists = [child for child in net.children() if isinstance(child, nn.ModuleList)]
        return [block for blocks in lists for block in blocks if list(block.parameters())]

    def lora_targets(self, net: nn.Module) -> list[str]:
        """Full names of the linear layers inside the blocks, without those of modulation."""
        inside = {id(module) for block in self.blocks(net) for module in block.modules()}
        return [
            name
            for name, module in net.named_modules()
            if isinstance(module, nn.Linear)
            and id(module) in inside
            and not _MODULATION.search(name)
        ]

    # ------------------------------------------------------------------ sampling

    @property
    def patch_size(self) -> int:
        """Side, in latents, of the patches that become one token of the denoiser."""
        return int(self.config.patch_size)

    @property
    def size_multiple(self) -> int:
        """What the height and width of a picture, in pixels, must be multiples of."""
        return int(self.pipe.vae_scale_factor) * self.patch_size

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one sample's latents for a size in pixels, without the batch: [C, h, w].

        Raises:
            FewstepError: The model does not take pictures of that size.
        """
        require_multiple(height, width, self.size_multiple)
        factor = int(self.pipe.vae_scale_factor)
        return int(self.config.in_channels), height // factor, width // factor

    def image_tokens(self, height: int, width: int) -> int:
        """See `Scheduled.image_tokens`."""
        return math.prod(self.latent_shape(height, width)[1:]) // self.patch_size**2

    def noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Starting noise of one picture, [1, ...], drawn on the CPU as the stock pipeline does."""
        return torch.randn(1, *self.latent_shape(height, width), generator=generator)

    def draw_noise(self, seeds: Iterable[int], height: int, width: int) -> Tensor:
        """Starting noise [B, ...], float32; each picture has a CPU generator of its own."""
        generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
        return torch.cat([self.noise(height, width, generator) for generator in generators])

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], float32, from latents as the denoiser takes them.

        By default, undoes the autoencoder's scale and shift in float32 and decodes.
        """
        config = self.pipe.vae.config
        shift = config.get("shift_factor") or 0.0
        return decode_images(self.pipe.vae, latents / config.scaling_factor + shift)

    def decode_video(self, latents: Tensor) -> Tensor:
        """Videos [B, 3, T, H, W] in [0, 1], float32; a picture is a video of one frame."""
        return self.decode(latents).unsqueeze(2)

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """Guided velocity from the conditional and the unconditional one, Eq. 15; 1 is off."""
        return classifier_free(cond, null, scale)

    def guided(self, velocity: VelocityFn, batch: int, scale: float) -> VelocityFn:
        """A velocity field with guidance; a scale of 1 returns it unchanged.

        A call costs two evaluations where guidance is classifier-free and one where it is embedded.
        Embedded guidance at scale 1 uses the scale that `encode` put into the conditioning.
        """
        if scale == 1.0:
            return velocity
        if self.guidance == "cfg":
            return guided(velocity, self.null(batch), scale, self.guide)

        def with_scale(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
            scales = torch.full_like(cond.tensors["guidance"], scale)
            return velocity(xt, sigma, cond.replace(guidance=scales))

        return with_scale

    @property
    def default_guidance(self) -> float:
        """The stock pipeline's default guidance scale."""
        return float(self._call_default("guidance_scale"))

    @property
    def default_steps(self) -> int:
        """The stock pipeline's default number of steps."""
        return int(self._call_default("num_inference_steps"))

    def _call_default(self, name: str) -> Any:
        return inspect.signature(type(self.pipe).__call__).parameters[name].default

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """Arguments with which the stock pipeline draws what our unguided loop draws.

        Literals only: they go into the model card's snippet. With them and `student_scheduler`,
        the pipeline walks the grid `shift(base_sigmas)` and encodes as `encode` does.

        Args:
            base_sigmas: Grid before the shift, without the final 0, Eq. 11.
            height: In pixels.
            width: In pixels.
        """
        call = {
            "sigmas": base_sigmas,
            "num_inference_steps": len(base_sigmas),
            "guidance_scale": 1.0,
            "height": height,
            "width": width,
        }
        length = self.max_sequence_length
        return call if length is None else call | {"max_sequence_length": length}

    def stock_load(self) -> dict[str, Any]:
        """Further arguments that the model card's `from_pretrained` needs; literals only."""
        return {}

    def stock_result(self) -> tuple[str, str]:
        """Python for the model card: how to take `image` from the result, and how to save it."""
        return ".images[0]", 'image.save("image.png")'

    def save(
        self,
        folder: Path,
        net: nn.Module,
        *,
        shift: float | None = None,
        terminal: Terminal = "model",
    ) -> None:
        """Writes a complete diffusers folder with another network.

        `shift` and `terminal` are those of the student's own grid, as for `student_scheduler`.
        """
        scheduler = self.student_scheduler(shift, terminal)
        write_pipeline(self.source, folder, {self.net_name: net}, scheduler)
