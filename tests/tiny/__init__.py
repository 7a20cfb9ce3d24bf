"""Real pipelines at tiny size, one file a family, found by discovery: what contracts run over."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.models import Backbone

Size = tuple[int, int]


def _as_it_is(backbone: Backbone, latents: Tensor, size: Size) -> Tensor:
    return latents


def _guidance_scale(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale}


@dataclass(frozen=True)
class Tiny:
    """A pipeline to be built with random weights, and what its stock version has to be told.

    Attributes:
        name: How tests call it.
        family: Name of the backbone that must claim it.
        build: Writes the diffusers folder; nothing is downloaded.
        oracle: A network that knows x0: ``oracle(target)`` answers the family's call such that the
            velocity is (xt - target) / sigma, in the family's own sign and clock.
        published: The network at its published size, to be called under the meta device.
        options: For `models.load`.
        size: Height and width in pixels.
        wide: Another size, not square.
        latents: The pipeline's `latents=` for our latents of that size.
        back: Our latents from what the pipeline gives for `output_type="latent"`.
        guided: Arguments of the stock call for a guidance scale as we count it; None: it has none.
        guidance: The scale to try.
        tolerance: Of latents against the stock pipeline's, relative to their largest.
        lora: Whether diffusers can load a LoRA of this family.
        variant: Whether another tiny pipeline stands for the same family.
        first: Where sampling starts: 1, or the sigma of the last trained time.
    """

    name: str
    family: str
    build: Callable[[Path], None]
    oracle: Callable[[Tensor], nn.Module]
    published: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    size: Size = (64, 64)
    wide: Size = (64, 96)
    latents: Callable[[Backbone, Tensor, Size], Tensor] = _as_it_is
    back: Callable[[Backbone, Tensor, Size], Tensor] = _as_it_is
    guided: Callable[[float], dict[str, Any]] | None = _guidance_scale
    guidance: float = 4.0
    tolerance: float = 1e-5
    lora: bool = True
    variant: bool = False
    first: float = 1.0


def discover() -> dict[str, Tiny]:
    """Every `Tiny` at the top of a file of this package, by name."""
    found: dict[str, Tiny] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found |= {each.name: each for each in vars(module).values() if isinstance(each, Tiny)}
    return found
