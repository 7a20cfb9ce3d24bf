"""Z-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from tiny import Tiny
from tiny.parts import qwen3, qwen_tokenizer, seeded, vae16, wake


class Oracle(nn.Module):
    """-(xt - target) / sigma on Z-Image's clock, a list of samples."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: list[Tensor], t: Tensor, *_: Any, **__: Any) -> tuple[list[Tensor]]:
        samples = zip(x, t, self.target, strict=True)
        return ([(target[:, None] - each) / (1 - time) for each, time, target in samples],)


def _build(folder: Path) -> None:
    with seeded():
        tokenizer = qwen_tokenizer()
        net = ZImageTransformer2DModel(
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 16, 16],
        )
        pipe = ZImagePipeline(
            FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae16(),
            qwen3(tokenizer),
            tokenizer,
            wake(net),
        )
    pipe.save_pretrained(folder, safe_serialization=True)


def _guided(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale - 1}


zimage = Tiny(
    "zimage",
    "zimage",
    _build,
    Oracle,
    ZImageTransformer2DModel,
    options={"max_sequence_length": 48},
    size=(16, 16),
    wide=(16, 24),
    guided=_guided,
)
