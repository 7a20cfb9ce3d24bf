"""Networks that are split over processes: when their weights travel, and when their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """What is kept whole for a while so that less is sent; for networks that FSDP2 shards.

    Attributes:
        keep_gathered: Keep weights from call to call where they do not change.
        reduce_once: Keep gradients until the last of several backward passes.
    """

    keep_gathered: bool
    reduce_once: bool

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
