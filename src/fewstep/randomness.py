"""Random draws as functions of (seed, step, name, global sample index).

There is no state to save: resuming is exact by construction, splitting a batch over micro-batches
or ranks changes nothing, and no two purposes share a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_UNIFORM_LEVELS = 1 << 23  # midpoints of these cells are exact in float32, and never 0 or 1


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
        digest = self._digest(name, "shared")
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def normal(self, name: str, indices: Iterable[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """Standard normal noise per sample, float32: [len(indices), *shape]."""
        size = tuple(shape)
        rows = [rng.standard_normal(size, np.float32) for rng in self._streams(name, indices)]
        return self._tensor(np.stack(rows))

    def uniform(self, name: str, indices: Iterable[int] | Tensor) -> Tensor:
        """Uniform value per sample in the open interval (0, 1), float32: [len(indices)]."""
        cells = [rng.integers(_UNIFORM_LEVELS) for rng in self._streams(name, indices)]
        return self._tensor(((np.array(cells) + 0.5) / _UNIFORM_LEVELS).astype(np.float32))

    def integers(self, name: str, indices: Iterable[int] | Tensor, high: int) -> Tensor:
        """Integer per sample, uniform in 0..high-1, int64: [len(indices)]."""
        return self._tensor(np.array([rng.integers(high) for rng in self._streams(name, indices)]))

    def _streams(self, name: str, indices: Iterable[int] | Tensor) -> list[np.random.Generator]:
        keys = [int.from_bytes(self._digest(name, int(i)), "little") for i in indices]
        return [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def _digest(self, name: str, index: int | str) -> bytes:
        text = f"{self.seed}/{self.step}/{name}/{index}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)
