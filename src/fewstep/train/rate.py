"""How a learning rate changes over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Factor of a learning rate: rises over the first updates, stays, falls over the last steps.

    The published settings rise and stay (arXiv 2605.06376).

    Attributes:
        warmup: Updates over which it rises linearly to 1.
        cooldown: Share of the iterations, at the end, over which it falls linearly towards 0.
        steps: Iterations of the run; looked at where there is a cool-down.
    """

    warmup: int = 0
    cooldown: float = 0.0
    steps: int = 0

    def __call__(self, update: int, step: int) -> float:
        """Factor of the update counted as `update`, in the iteration `step`, both from 1."""
        rising = update / self.warmup if self.warmup else 1.0
        last = self.cooldown * self.steps
        falling = (self.steps + 1 - step) / last if last else 1.0
        return max(min(1.0, rising, falling), 0.0)


CONSTANT = Rate()
