"""Activation checkpointing: activations are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError


def checkpoint_activations(
    backbone: Backbone,
    net: nn.Module,
    every: int = 1,
    *,
    recompute_in: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Turns activation checkpointing on for every n-th block of a network, in place.

    Gradients stay the same.

    Args:
        backbone: The model that knows the network's blocks.
        net: The network.
        every: n; 1 recomputes all blocks, 2 the first, third, fifth and so on.
        recompute_in: Called in the forward pass; gives the context that the recomputation needs,
            such as the adapter that was active.

    Raises:
        FewstepError: diffusers cannot do it for this network.
    """
    enable = getattr(net, "enable_gradient_checkpointing", None)
    if enable is None:
        raise FewstepError(
            f"student.gradient_checkpointing: {type(net).__name__} cannot; set it to false",
            code="unsupported",
        )
    # A U-Net's block has parts that are recomputed one by one.
    inside = {id(part) for block in backbone.blocks(net)[::every] for part in block.modules()}

    def call(module: Any, *arguments: Any) -> Any:
        if every == 1 or id(module) in inside:
            return checkpoint(
                module.__call__,
                *arguments,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), recompute_in()),
            )
        return module(*arguments)

    enable(call)
