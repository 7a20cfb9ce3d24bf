"""Rounding at random: what is too small for a format gets there on average."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_on(device: torch.device, source: torch.Generator) -> torch.Generator:
    """A generator on a device, a function of the seed of another that nothing was drawn from."""
    return torch.Generator(device).manual_seed(source.initial_seed())


def round_at_random(x: Tensor, generator: torch.Generator, *, bits: int = 16) -> Tensor:
    """Values with so many mantissa bits fewer; the expectation of each is what it was.

    With 16 bits fewer what remains is exact in bfloat16, with 20 in float8_e4m3 (of its range).

    Args:
        x: float32, finite.
        generator: Of the same device; as many values are drawn as there are in `x`.
        bits: Lowest bits of the mantissa to drop.
    """
    size, device = x.shape, x.device
    noise = torch.randint(1 << bits, size, generator=generator, device=device, dtype=torch.int32)
    return noise.add_(x.contiguous().view(torch.int32)).bitwise_and_(-1 << bits).view(torch.float32)
