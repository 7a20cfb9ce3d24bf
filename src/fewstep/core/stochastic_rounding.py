"""Rounding at random: what is too small for bfloat16 gets there on average."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_on(device: torch.device, source: torch.Generator) -> torch.Generator:
    """A generator on a device, a function of the seed of another that nothing was drawn from."""
    return torch.Generator(device).manual_seed(source.initial_seed())


def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """Values that bfloat16 can hold; the expectation of each is what it was.

    Args:
        x: float32, finite.
        generator: Of the same device; as many values are drawn as there are in `x`.
    """
    size, device = x.shape, x.device
    noise = torch.randint(1 << 16, size, generator=generator, device=device, dtype=torch.int32)
    return noise.add_(x.contiguous().view(torch.int32)).bitwise_and_(-1 << 16).view(torch.float32)
