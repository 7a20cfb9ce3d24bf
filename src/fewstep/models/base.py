"""What a backbone is: the one place that knows how a family's network is asked for velocity."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from fewstep.core.schedules import ExponentialShift, Shift, StaticShift
from fewstep.core.solver import classifier_free, guided
from fewstep.core.types import Conditioning, VelocityFn
from fewstep.models.published import Published
from fewstep.utils.errors import FewstepError

_MODULATION = re.compile(r"norm|adaln|modulation", re.IGNORECASE)


class Backbone(ABC):
    """A loaded pipeline as the mathematics wants it: ``velocity(net, xt, sigma, cond) -> v``.

    One subclass per model family, in a file of its own. It alone knows timesteps, signs, packing,
    position ids, VAE constants and text encoders. The network is an argument of `velocity`, so one
    object serves student, teacher and fake teacher.

    Attributes:
        name: Short name of the family.
        pipelines: Names of the diffusers pipeline classes it understands.
        prediction: What the network predicts: "velocity", "eps" or "v".
        guidance: How the teacher is guided: "cfg" (two evaluations) or "embedded".
        notes: One line for the table of models.
        task: What the hub calls it.
        net_name: The pipeline's component that is trained.
        encoder_names: Its text encoders; the first one is always there.
        tokenizer_names: Their tokenizers.
        models: The published models of the family.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    prediction: ClassVar[str] = "velocity"
    guidance: ClassVar[str] = "cfg"
    notes: ClassVar[str] = ""
    task: ClassVar[str] = "text-to-image"
    net_name: ClassVar[str] = "transformer"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    models: ClassVar[tuple[Published, ...]] = ()

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Takes over a loaded pipeline; `source` is the folder that it came from."""
        self.pipe = pipe
        self.source = source
        self._null: Conditioning | None = None
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(name == self.net_name).eval()

    @classmethod
    def load_overrides(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """What `from_pretrained` must be told besides the folder, dtype and safety.

        `options` are those of the family, as its constructor takes them.
        """
        return {}

    # ------------------------------------------------------------------ the network

    @property
    def net(self) -> nn.Module:
        """The pretrained network, as loaded."""
        net: nn.Module = getattr(self.pipe, self.net_name)
        return net

    @property
    def device(self) -> torch.device:
        """Where the pretrained network lives; without one, the first text encoder."""
        net, encoder = self.net, getattr(self.pipe, self.encoder_names[0], None)
        return next((net if isinstance(net, nn.Module) else encoder).parameters()).device

    def to(self, device: torch.device | str) -> Backbone:
        """Moves every network of the pipeline."""
        self.pipe.to(device)
        if self._null is not None:
            self._null = self._null.to(device)
        return self

    @abstractmethod
    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity v = eps - x0 at xt, Eq. 2.

        Args:
            net: Any network of this architecture.
            xt: Latents as the denoiser takes them, [B, ...], float32.
            sigma: Noise levels in [0, 1], [B].
            cond: Encoded prompts of the same batch.

        Returns:
            float32, the shape of xt.
        """

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        """The repeated blocks, in order: what is checkpointed, compiled and sharded one by one."""
        found = [part for part in net.children() if isinstance(part, nn.ModuleList)]
        return [block for part in found for block in part if list(block.parameters())]

    def lora_targets(self, net: nn.Module) -> list[str]:
        """Full names of the linear layers inside the blocks, modulation aside."""
        inside = {id(module) for block in self.blocks(net) for module in block.modules()}
        return [
            name
            for name, module in net.named_modules()
            if isinstance(module, nn.Linear)
            and id(module) in inside
            and not _MODULATION.search(name)
        ]

    # ------------------------------------------------------------------ prompts

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """Encodes prompts; called without gradients and with a list of its own."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts as the denoiser is given them, of one fixed length.

        Raises:
            FewstepError: The text encoders were freed.
        """
        self._check_encoders()
        return self._encode(list(prompts))

    def _encode_null(self) -> Conditioning:
        """The empty prompt, encoded as the stock pipeline encodes a negative one."""
        return self._encode([""])

    def _check_encoders(self) -> None:
        if getattr(self.pipe, self.encoder_names[0], None) is None:
            raise FewstepError(f"{self.source}: the text encoders were freed; load it again")

    @torch.no_grad()
    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times over; encoded once."""
        if self._null is None:
            self._check_encoders()
            self._null = self._encode_null()
        return self._null.select(torch.zeros(batch, dtype=torch.long, device=self.device))

    @property
    def text_tokens(self) -> int:
        """Length of every encoded prompt, as options and configurations tell it.

        `max_sequence_length`, where the family has that option; else of the first tokenizer.
        """
        return int(getattr(self, "max_sequence_length", None) or self._first_tokens())

    def _first_tokens(self) -> int:
        """What the first tokenizer pads to, by its configuration; 77, as CLIP's, without one."""
        file = self.source / (self.tokenizer_names or ("tokenizer",))[0] / "tokenizer_config.json"
        try:
            return int(json.loads(file.read_text(encoding="utf-8"))["model_max_length"])
        except (OSError, ValueError, KeyError):
            return 77

    def keep_null(self, cond: Conditioning) -> None:
        """Takes the encoded empty prompt, batch 1, from elsewhere: for use without encoders."""
        self._null = cond.to(self.device)

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is longer than every text encoder reads, so that its end is lost.

        A tokenizer reads as much as its model allows, and no more than `most_tokens`.
        """
        lost = [bool(self.tokenizer_names)] * len(prompts)
        for name in self.tokenizer_names if prompts else ():
            tokenizer = getattr(self.pipe, name, None)
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one inside
            if tokenizer is not None:
                limit = min(tokenizer.model_max_length, self.most_tokens(name))
                tokens = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
                lost = [old and len(ids) > limit for old, ids in zip(lost, tokens, strict=True)]
        return lost

    def most_tokens(self, tokenizer: str) -> float:
        """Tokens at which options cut what a tokenizer (its name) reads; inf if they do not."""
        return getattr(self, "max_sequence_length", None) or math.inf

    def free_encoders(self) -> None:
        """Drops the text encoders from memory, the encoded empty prompt stays."""
        self.null(1)
        for name in self.encoder_names:
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)

    # ------------------------------------------------------------------ sampling

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one sample's latents for a picture of so many pixels, without the batch.

        Raises:
            FewstepError: The size does not fit the model.
        """

    def image_tokens(self, height: int, width: int) -> int:
        """Packed image tokens of a picture: what dynamic shifting depends on."""
        return math.prod(self.latent_shape(height, width)[1:])

    def noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Starting noise of one picture, [1, ...], as the stock pipeline draws it on the CPU."""
        return torch.randn(1, *self.latent_shape(height, width), generator=generator)

    def draw_noise(self, seeds: Iterable[int], height: int, width: int) -> Tensor:
        """Starting noise [B, ...], float32; each picture has a CPU generator of its own."""
        generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
        return torch.cat([self.noise(height, width, generator) for generator in generators])

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], float32, from latents as the denoiser takes them."""

    def decode_video(self, latents: Tensor) -> Tensor:
        """Videos [B, 3, T, H, W] in [0, 1], float32; of families that draw pictures, one frame."""
        return self.decode(latents).unsqueeze(2)

    def shift(self, height: int, width: int) -> Shift:
        """What this model does to base sigmas at that size, read from the loaded scheduler."""
        return shift_of(self.pipe.scheduler.config, tokens=self.image_tokens(height, width))

    def effective_shift(self, value: float | None, height: int, width: int) -> Shift:
        """The shift of a grid that may have its own: `value`, static; None is the model's.

        `student_scheduler` does the same to the stock pipeline.

        Raises:
            FewstepError: A value, and the family's schedulers have no shift to set.
        """
        return self.shift(height, width) if value is None else StaticShift(value)

    def guide(self, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """Guided velocity from the two branches, Eq. 15; 1 is off."""
        return classifier_free(cond, null, scale)

    def guided(self, velocity: VelocityFn, batch: int, scale: float) -> VelocityFn:
        """A velocity field of this family's network under guidance; 1 leaves it as it is.

        Two evaluations a call where guidance is classifier-free. Where it is an input of the
        network (`guidance = "embedded"`), one, and 1 stands for the input that `encode` sets.
        """
        if scale == 1.0:
            return velocity
        if self.guidance == "cfg":
            return guided(velocity, self.null(batch), scale, self.guide)

        def with_scale(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
            scales = torch.full_like(cond.tensors["guidance"], scale)
            return velocity(xt, sigma, Conditioning({**cond.tensors, "guidance": scales}))

        return with_scale

    @property
    def default_guidance(self) -> float:
        """The guidance scale that the stock pipeline uses when told nothing."""
        return float(self._call_default("guidance_scale"))

    @property
    def default_steps(self) -> int:
        """The number of steps that the stock pipeline uses when told nothing."""
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
        return {
            "sigmas": base_sigmas,
            "num_inference_steps": len(base_sigmas),
            "guidance_scale": 1.0,
            "height": height,
            "width": width,
        }

    def stock_load(self) -> dict[str, Any]:
        """What the stock pipeline's `from_pretrained` must be told on any machine; literals."""
        return {}

    def stock_result(self) -> tuple[str, str]:
        """Python that follows the stock call: what of its answer is `image`, and how to keep it."""
        return ".images[0]", 'image.save("image.png")'

    def student_scheduler(self, shift: float | None = None) -> Any | None:
        """The scheduler a student needs in the stock pipeline; None: the teacher's own.

        Args:
            shift: The static shift of the student's own grid; None is the model's.
        """
        return None if shift is None else self._with_static_shift(shift)

    def _with_static_shift(self, shift: float) -> FlowMatchEulerDiscreteScheduler:
        """The teacher's scheduler, but with this shift and no other bend of the grid."""
        return FlowMatchEulerDiscreteScheduler.from_config(
            self.pipe.scheduler.config,
            shift=shift,
            use_dynamic_shifting=False,
            shift_terminal=None,
        )

    def lora_call(self, address: str) -> str:
        """The line of Python that loads an exported LoRA from `address` into `pipe`."""
        return f"pipe.load_lora_weights({address!r})"

    def load_lora(self, folder: Path) -> None:
        """Loads what `save_lora` wrote into the pretrained network."""
        self.pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")

    # ------------------------------------------------------------------ files

    def save(self, folder: Path, net: nn.Module, *, shift: float | None = None) -> None:
        """Writes a whole diffusers folder: the source's files, with `net` as its network.

        Args:
            folder: Where to.
            net: The network.
            shift: The static shift of the student's own grid; None is the model's.
        """
        shutil.copytree(
            self.source, folder, dirs_exist_ok=True, ignore=_everything_but_parts(self.net_name)
        )
        save: Any = net.save_pretrained  # a network of diffusers, which nn.Module does not tell
        save(folder / self.net_name, safe_serialization=True)
        if scheduler := self.student_scheduler(shift):
            shutil.rmtree(folder / "scheduler", ignore_errors=True)
            scheduler.save_pretrained(folder / "scheduler")
            _name_scheduler(folder / "model_index.json", type(scheduler).__name__)

    def save_lora(self, folder: Path, net: nn.Module, adapter: str) -> None:
        """Writes one adapter as `pytorch_lora_weights.safetensors`, right at scale 1.

        Raises:
            FewstepError: diffusers cannot load LoRA weights into this pipeline.
        """
        from peft.utils import get_peft_model_state_dict

        save = getattr(self.pipe, "save_lora_weights", None)
        if save is None:
            raise FewstepError(f"{type(self.pipe).__name__} has no LoRA format; export it merged")
        layers = get_peft_model_state_dict(net, adapter_name=adapter)
        save(folder, **{f"{self.net_name}_lora_layers": layers}, safe_serialization=True)


def shift_of(config: Mapping[str, Any], *, tokens: int) -> Shift:
    """The shift that a flow-match scheduler's configuration asks for, Eq. 12.

    Args:
        config: The scheduler's configuration.
        tokens: Packed image tokens, which dynamic shifting depends on.

    Raises:
        FewstepError: if the scheduler then bends its sigmas in another way.
    """
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if config.get(name):
            raise FewstepError(
                f"scheduler/scheduler_config.json: {name} is on, which grids of few steps do not "
                "survive; set it to false"
            )
    terminal = config.get("shift_terminal") or None
    if not config.get("use_dynamic_shifting", False):
        static = StaticShift(float(config.get("shift", 1.0)))
        return static if terminal is None else ExponentialShift(math.log(static.shift), terminal)
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    mu = float(config["base_shift"] + slope * (tokens - low))
    linear = config.get("time_shift_type") == "linear"  # then mu itself is the static shift
    return ExponentialShift(math.log(mu) if linear else mu, terminal)


def _name_scheduler(index: Path, name: str) -> None:
    content = json.loads(index.read_text(encoding="utf-8"))
    content["scheduler"] = ["diffusers", name]
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _everything_but_parts(net_name: str) -> Any:
    """A filter for copytree: leaves out the trained network, hidden files and pictures."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name.endswith((".png", ".md"))}
        return hidden | ({net_name} & set(names))

    return ignore
