"""Running mean of the student's weights: what is previewed and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fewstep.train.offload import at_home, settle


class Ema:
    """Exponential moving average with a decay that starts low: min((1 + n) / (10 + n), max_decay).

    Attributes:
        weights: name -> averaged weight, float32.
        updates: Updates so far, n.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        max_decay: float = 0.999,
        *,
        on_host: bool = False,
    ) -> None:
        """Starts as a copy of the parameters; `on_host` keeps it in the computer's memory."""
        self._parameters = dict(parameters)
        self._max_decay = max_decay
        self._on_host = on_host
        copy = at_home if on_host else torch.clone
        self.weights = {name: copy(p.detach().float()) for name, p in self._parameters.items()}
        self.updates = 0

    @property
    def decay(self) -> float:
        """Share of the old mean that the next update keeps."""
        return min((1 + self.updates) / (10 + self.updates), self._max_decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the parameters as they are now."""
        share = 1 - self.decay
        if self._plain:
            now = list(self._parameters.values())
            torch._foreach_lerp_(list(self.weights.values()), now, share)
        else:
            for name, parameter in self._parameters.items():
                mean = self.weights[name].to(parameter.device, non_blocking=True)
                self.weights[name].copy_(mean.lerp_(parameter.float(), share), non_blocking=True)
                if self._on_host:
                    settle(parameter.device)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters hold the mean; one of them is copied at a time.

        Parameters of lower precision, which cannot hold the mean itself, are set aside.
        """
        own = {name: p.detach().clone() for name, p in self._low.items()}
        self._exchange()
        try:
            yield
        finally:
            self._exchange(own)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a saved mean."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.updates = updates

    @property
    def _low(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._parameters.items() if p.dtype != torch.float32}

    @property
    def _plain(self) -> bool:
        """Whether means and parameters are of one kind, in one place."""
        return not self._on_host and not self._low

    @torch.no_grad()
    def _exchange(self, own: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        # Value by value: sharded parameters are also held by what shards them.
        low = self._low
        for name, parameter in self._parameters.items():
            if name in low:
                parameter.copy_(own.get(name, self.weights[name]))
                continue
            held = self.weights[name].clone()
            self.weights[name].copy_(parameter)
            parameter.copy_(held)
