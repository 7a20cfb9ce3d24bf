"""What ComfyUI loads a family with: names of its core nodes, and of files as they are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Node = tuple[str, Mapping[str, Any]]
"""Class of a node, and its inputs other than links."""


@dataclass(frozen=True)
class ComfyUI:
    """How ComfyUI loads a family, encodes a prompt for it and samples from it.

    Attributes:
        base: File of the published model. It is a checkpoint, with VAE and perhaps text encoders,
            where no `vae` is named, else a diffusion model alone.
        clip: Node that loads the text encoders; None: the checkpoint has them.
        vae: File of the VAE; None: the checkpoint has it.
        latent: Node of empty latents.
        shift: Node that sets a flow's static shift: ``ModelSamplingSD3`` (the network's clock runs
            to 1000), ``ModelSamplingAuraFlow`` (to 1) or ``ModelSamplingFlux`` (given as mu).
        betas: Of a model with trained times, what ComfyUI takes them to be: schedule, start, end.
        encode: Node that encodes a prompt.
        prompt: Its input that is the prompt.
    """

    base: str
    clip: Node | None = None
    vae: str | None = None
    latent: str = "EmptySD3LatentImage"
    shift: str | None = None
    betas: tuple[str, float, float] | None = None
    encode: Node = ("CLIPTextEncode", MappingProxyType({}))
    prompt: str = "text"
