"""The recipe's section about several processes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from fewstep.config.strict import Positive, Section, Size


class ParallelRecipe(Section):
    """How the processes that torchrun starts share the work."""

    shard: Literal["none", "full", "hybrid"] = "none"
    """`none`: each process holds the networks whole. `full`: they are split over all processes.
    `hybrid`: split within groups, of which there are `replicate`. For networks that do not fit one
    GPU."""
    replicate: Size = 1
    """Number of groups for `hybrid`: as a rule the number of machines."""
    keep_gathered: bool | Literal["auto"] = "auto"
    """Gather a split student once for the whole simulation, during which it is whole in
    `model.dtype`; off, block by block in each of its calls. `auto`: on where it takes up to half
    of what weights, gradients, optimizers and the running mean leave of the GPU."""
    reduce_once: bool | Literal["auto"] = "auto"
    """Add up a split network's gradients over the parts of a batch in each process and send them
    once, which takes all of them whole in float32; off, they are sent after each part. `auto`: on
    where it fits beside `keep_gathered`, by the same rule."""
    timeout: Positive = 600.0
    """Seconds that processes wait for each other before the run is given up."""

    @model_validator(mode="after")
    def _replicate_fits_shard(self) -> Self:
        if (self.shard == "hybrid") != (self.replicate > 1):
            raise ValueError("shard 'hybrid' goes with replicate above 1, and no other shard does")
        return self
