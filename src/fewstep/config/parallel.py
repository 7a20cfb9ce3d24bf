"""The recipe's section about several processes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from fewstep.config.strict import Count, Positive, Section


class ParallelRecipe(Section):
    """How the processes that torchrun starts share the work; `data.batch_size` is that of all.

    Attributes:
        shard: ``none``: each holds the networks whole. ``full``: they are split over all.
            ``hybrid``: split within groups, which are `replicate` copies of each other.
        replicate: Copies, for ``hybrid``: as a rule the number of machines.
        timeout: Seconds that processes wait for each other before the run is given up.
    """

    shard: Literal["none", "full", "hybrid"] = "none"
    replicate: Count = 1
    timeout: Positive = 600.0

    @model_validator(mode="after")
    def _replicate_fits_shard(self) -> Self:
        if (self.shard == "hybrid") != (self.replicate > 1):
            raise ValueError("shard 'hybrid' goes with replicate above 1, and no other shard does")
        return self
