"""Random values as functions of (seed, step, name, global sample index), and re-noising.

There is no state to save: resuming is exact by construction, splitting a batch over micro-batches
or processes changes nothing, and no two purposes share a stream. Equation numbers refer to
``docs/math.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.flow import add_noise
from fewstep.core.schedules import Law
from fewstep.core.transfer import to_device

# A torch seed is 63 bits, of which the CPU generator uses 32: two samples that are far apart may
# once in a long run share their noise, which does no harm.
_BITS = 63
_UNIFORM_CELLS = 1 << 23  # midpoints of these cells are exact in float32, and never 0 or 1


@dataclass(frozen=True)
class Draws:
    """All the random values of one step.

    Attributes:
        seed: Seed of the run.
        step: Iteration the values belong to.
        device: Where values are put; they are drawn on the CPU, so it does not change them.
    """

    seed: int
    step: int
    device: torch.device | str = "cpu"

    def shared(self, name: str) -> torch.Generator:
        """CPU generator equal on all ranks, for what decides the number of network calls."""
        return torch.Generator().manual_seed(self._bits(name, "shared"))

    def normal(self, name: str, indices: Iterable[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """Standard normal noise per sample, float32: [len(indices), *shape]."""
        keys = self._keys(name, indices)
        on_gpu = torch.device(self.device).type == "cuda"
        noise = torch.empty(len(keys), *shape, pin_memory=on_gpu)  # see `transfer.to_device`
        rng = torch.Generator()
        for row, key in zip(noise, keys, strict=True):
            row.normal_(generator=rng.manual_seed(key))
        return to_device(noise, self.device)

    def uniform(self, name: str, indices: Iterable[int] | Tensor) -> Tensor:
        """Uniform value per sample in the open interval (0, 1), float32: [len(indices)]."""
        cells = self.integers(name, indices, _UNIFORM_CELLS)
        return (cells + 0.5) / _UNIFORM_CELLS

    def integers(self, name: str, indices: Iterable[int] | Tensor, high: int) -> Tensor:
        """Integer per sample, uniform in 0..high-1, int64: [len(indices)]."""
        values = [key * high >> _BITS for key in self._keys(name, indices)]
        return to_device(torch.tensor(values, dtype=torch.int64), self.device)

    def _keys(self, name: str, indices: Iterable[int] | Tensor) -> list[int]:
        numbers = indices.tolist() if isinstance(indices, Tensor) else indices
        return [self._bits(name, number) for number in numbers]

    def _bits(self, name: str, index: int | str) -> int:
        """The random bits that belong to one purpose and sample: a number below 2^63."""
        text = f"{self.seed}/{self.step}/{name}/{index}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> (64 - _BITS)


class Noised(NamedTuple):
    """A noisy latent and what it was made of.

    Attributes:
        xt: Noisy latent, [B, ...].
        sigma: Its noise level, [B].
        eps: The noise in it, [B, ...].
    """

    xt: Tensor
    sigma: Tensor
    eps: Tensor


def renoise(
    x0: Tensor, law: Law, *, anchor_sigma: Tensor, name: str, draws: Draws, indices: Tensor
) -> Noised:
    """Clean latents, detached, under fresh noise at a sigma drawn from a law, Eq. 21.

    Args:
        x0: Clean latents, [B, ...].
        law: Law of the sigma.
        anchor_sigma: Sigma of the anchor, for laws that depend on it, [B].
        name: Purpose; draws of different names are independent.
        draws: The random values of this iteration.
        indices: Global index of each sample, [B].
    """
    sigma = law(draws.uniform(f"{name}/sigma", indices), anchor_sigma)
    eps = draws.normal(f"{name}/eps", indices, x0.shape[1:])
    return Noised(add_noise(x0.detach(), eps, sigma), sigma, eps)
