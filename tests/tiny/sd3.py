"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from tiny import Tiny
from toyworld_training import pipeline


class Oracle(nn.Module):
    """(xt - target) / sigma on SD3's clock."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = (timestep / 1000)[:, None, None, None]
        return ((hidden_states - self.target) / sigma,)


def _build(folder: Path) -> None:
    pipeline.build(seed=0).save_pretrained(folder, safe_serialization=True)


def _build_35(folder: Path) -> None:
    pipe = pipeline.build(seed=1)
    config = dict(pipe.transformer.config) | {"dual_attention_layers": (0,)}
    pipe.register_modules(transformer=SD3Transformer2DModel.from_config(config))
    pipe.save_pretrained(folder, safe_serialization=True)


def _published() -> nn.Module:
    return SD3Transformer2DModel(sample_size=128, num_layers=24, num_attention_heads=24)


def _published_35() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )


_OPTIONS = {"max_sequence_length": 16}
sd3 = Tiny("sd3", "sd3", _build, Oracle, _published, options=_OPTIONS)
_variant = partial(Tiny, family="sd3", oracle=Oracle, variant=True)
sd3_without_t5 = _variant(
    "sd3_without_t5", build=_build, published=_published, options={**_OPTIONS, "t5": False}
)
sd35 = _variant("sd35", build=_build_35, published=_published_35, options=_OPTIONS)
