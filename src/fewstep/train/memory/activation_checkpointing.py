"""Activations that are computed again instead of kept."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError


def checkpoint_activations(backbone: Backbone, net: nn.Module, every: int = 1) -> None:
    """Let the backward pass recompute what every so many-th block computed, in place.

    The first block is one of them; of the others activations are kept. Gradients are the same.

    Args:
        backbone: Whose network it is.
        net: The network.
        every: 1 recomputes all blocks.

    Raises:
        FewstepError: diffusers cannot do it for this network.
    """
    enable = getattr(net, "enable_gradient_checkpointing", None)
    if enable is None:
        raise FewstepError(
            f"student.gradient_checkpointing: {type(net).__name__} cannot; set it to false",
            code="unsupported",
        )
    if every == 1:
        enable()
        return
    # A U-Net's block has parts that are recomputed one by one.
    inside = {id(part) for block in backbone.blocks(net)[::every] for part in block.modules()}

    def call(module: Any, *arguments: Any) -> Any:
        if id(module) in inside:
            return checkpoint(module.__call__, *arguments, use_reentrant=False)
        return module(*arguments)

    enable(call)
