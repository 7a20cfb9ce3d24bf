"""Our sampling and the stock pipeline's, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.schedules import Terminal, few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.core.types import Conditioning, VelocityFn
from fewstep.models import Backbone
from tiny import Size, Tiny

PROMPTS = ["small red circle left", "a blue square and one large pink cross at the top, on gray"]


def close(tensor: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors differ by no more than a part of the largest value."""
    return bool((tensor - expected).abs().max() <= tolerance * expected.abs().max())


def velocity_of(backbone: Backbone, net: nn.Module | None = None) -> VelocityFn:
    """The velocity field of a network; without one, of the pretrained."""

    def velocity(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return backbone.velocity(backbone.net if net is None else net, xt, sigma, cond)

    return velocity


def ours(
    backbone: Backbone,
    velocity: VelocityFn,
    cond: Conditioning,
    start: Tensor,
    size: Size,
    *,
    shift: float | None = None,
    terminal: Terminal = "model",
) -> Tensor:
    """Latents after four of our steps."""
    base = torch.tensor(few_step_sigmas(4), dtype=torch.float32)  # as the schedulers have them
    grid = with_shift(base, backbone.effective_shift(shift, *size, terminal=terminal))
    with torch.no_grad():
        return sample(velocity, start, grid, cond)


def stock(pipe: Any, tiny: Tiny, backbone: Backbone, start: Tensor, size: Size, **more: Any) -> Any:
    """The same of the stock pipeline; pictures for another `output_type` than latents."""
    call = backbone.stock_call(few_step_sigmas(4), *size) | {"output_type": "latent"} | more
    result = pipe(prompt=list(PROMPTS), latents=tiny.latents(backbone, start, size), **call)
    images = next(iter(result.values()))
    return images if call["output_type"] != "latent" else tiny.back(backbone, images, size)


def noisy(backbone: Backbone, size: Size) -> tuple[Tensor, Tensor]:
    """Two points to ask a network at: latents and their sigmas."""
    return backbone.draw_noise(range(2), *size), torch.tensor([0.9, 0.4])
