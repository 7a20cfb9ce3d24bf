"""Networks that are split over processes: when their weights travel, and when their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.config import Recipe

_ADAM = 8  # bytes of a parameter's moments
_MEAN = 4  # bytes of a parameter's running mean


@dataclass(frozen=True)
class Split:
    """What is kept whole for a while so that less is sent; for networks that FSDP2 shards.

    Attributes:
        keep_gathered: Keep weights from call to call where they do not change.
        reduce_once: Keep gradients until the last of several backward passes.
    """

    keep_gathered: bool
    reduce_once: bool

    @classmethod
    def of(cls, recipe: Recipe, *, network: int, trained: int, shards: int, room: float) -> Split:
        """What a recipe wants; where it leaves that open, what should fit.

        That is what takes up to half of the room that weights, gradients, optimizers and the
        running mean leave; the other half is for activations. It depends on nothing that changes
        while a run is under way, so that it is the same in all processes and after a resume.

        Args:
            recipe: The run's.
            network: Numbers in the network.
            trained: Numbers in what is trained of it.
            shards: Devices that it is split over.
            room: Bytes that a device has for the run.
        """
        lora = recipe.student.mode == "lora"
        width = _width(recipe.memory.trained_dtype or "float32")
        frozen = network * _width(recipe.memory.teacher_dtype or recipe.model.dtype)
        state = trained * (3 * width + 2 * _ADAM + _MEAN)  # two roles, one's gradients
        half = (room - frozen // shards - state // (1 if lora else shards)) / 2
        weights, gradients = whole_bytes(recipe, network, shards)
        wanted = recipe.parallel
        keep, once = wanted.keep_gathered, wanted.reduce_once
        if keep == "auto":
            keep = weights <= half
        if once == "auto":
            once = gradients + keep * weights <= half
        return cls(keep, once)

    @contextmanager
    def gathered(self, net: Any) -> Iterator[None]:
        """Context in which a network stays whole from its first call on, if wanted."""
        if not self.keep_gathered:
            yield
            return
        net.set_reshard_after_forward(False)
        try:
            yield
        finally:
            net.set_reshard_after_forward(True)
            for module in net.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def before_backward(self, net: Any, *, last: bool) -> None:
        """Says whether the coming backward pass is the last before the network's update."""
        if self.reduce_once:
            net.set_requires_gradient_sync(last)


def whole_bytes(recipe: Recipe, network: int, shards: int) -> tuple[int, int]:
    """Bytes of a network's weights that `keep_gathered` holds, and of gradients `reduce_once`.

    Args:
        recipe: The run's.
        network: Numbers in the network.
        shards: Devices that it is split over.
    """
    low = _width(recipe.model.dtype)
    if recipe.student.mode == "lora":
        return network * low, 0  # adapters are whole everywhere
    trained = _width(recipe.memory.trained_dtype or "float32")
    several = recipe.data.parts(shards * recipe.parallel.replicate) > 1
    return network * min(low, trained), several * network * trained


def _width(dtype: str) -> int:
    size: int = getattr(torch, dtype).itemsize
    return size
