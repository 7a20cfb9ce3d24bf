"""A linear layer with adapters of another precision than its own; imports peft."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import linear


class AdaptedLinear(Linear):
    """peft's layer, whose float32 adapters come to the precision of what they work on.

    peft brings its input to the adapters' precision instead, and multiplies, adds and casts what
    comes out: passes over activations that cost more than all else of a block. Where precisions are
    the same, it is peft's own.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer with the adapters in force, if any: [..., features in] -> [..., out]."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        same = all(self.lora_A[name].weight.dtype == x.dtype for name in names)
        if same or self.disable_adapters or self.merged:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        output = self.base_layer(x)
        for name in names:
            down, up = (side[name].weight.to(x.dtype) for side in (self.lora_A, self.lora_B))
            rows = linear(x, down).flatten(0, -2)
            # Added by the product itself; `view` refuses what would be a copy.
            output.view(-1, len(up)).addmm_(rows, up.t(), alpha=self.scaling[name])
        return output
