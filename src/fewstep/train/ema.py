"""Running mean of the student's weights: what is previewed and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average with a decay that starts low: min((1 + n) / (10 + n), max_decay).

    Attributes:
        weights: name -> averaged weight, float32.
        updates: Updates so far, n.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], max_decay: float = 0.999) -> None:
        """Starts as a copy of the parameters."""
        self._parameters = dict(parameters)
        self._max_decay = max_decay
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.updates = 0

    @property
    def decay(self) -> float:
        """Share of the old mean that the next update keeps."""
        return min((1 + self.updates) / (10 + self.updates), self._max_decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the parameters as they are now."""
        share = 1 - self.decay
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), share)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters hold the mean; one of them is copied at a time."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a saved mean."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.updates = updates

    @torch.no_grad()
    def _exchange(self) -> None:
        # Value by value: sharded parameters are also held by what shards them.
        for name, parameter in self._parameters.items():
            held = self.weights[name].clone()
            self.weights[name].copy_(parameter)
            parameter.copy_(held)
