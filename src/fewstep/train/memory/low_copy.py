"""Low-precision copies of trained networks, for the calls that need no graph.

Autocast casts float32 masters again in every call, and does normalisations in float32. Most calls
need no graph: the backward simulation and the fake teacher's answers. Between two backward passes
they share one copy in the precision of computation, as a pipeline would draw pictures with it. It
is there when gradients are not, so the fullest moment stays as full as it was.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class LowCopy:
    """A network whose weights are cast from another's when they are first needed.

    Attributes:
        net: The network; without values until `of` is called, and after `release`.
    """

    def __init__(self, template: nn.Module) -> None:
        """Takes the structure of `template`, and the precision of each of its tensors."""
        self._dtypes = [tensor.dtype for tensor in _tensors(template)]
        # What deepcopy finds in its memo it does not copy.
        blanks = {id(each): _blank(each) for each in _tensors(template)}
        self.net = copy.deepcopy(template, blanks).requires_grad_(False).eval()
        self._version: int | None = None

    @torch.no_grad()
    def of(self, masters: nn.Module) -> nn.Module:
        """The network with the values that `masters`, of the same structure, have now."""
        tensors = _tensors(masters)
        version = sum(tensor._version for tensor in tensors)  # counts all changes in place
        if version != self._version:
            self.release()
            for own, master, dtype in zip(_tensors(self.net), tensors, self._dtypes, strict=True):
                own.data = master.detach().to(dtype)
            self._version = version
        return self.net

    def release(self) -> None:
        """Give back the memory."""
        if self._version is not None:
            self._version = None
            for tensor in _tensors(self.net):
                tensor.data = tensor.new_empty(0)


def _tensors(net: nn.Module) -> list[Tensor]:
    return list(chain(net.parameters(), net.buffers()))


def _blank(tensor: Tensor) -> Tensor:
    blank = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(blank, requires_grad=False) if isinstance(tensor, nn.Parameter) else blank


@torch.no_grad()
def cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Bring a network to a precision, in place; what its class keeps in float32 stays there."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        kept = dtype != torch.float32 and keeps_float32(net, name)
        if tensor.is_floating_point() and not kept:
            tensor.data = tensor.data.to(dtype)
    return net


def keeps_float32(net: nn.Module, name: str) -> bool:
    """Whether a network's class keeps a tensor in float32, whatever the rest is in."""
    keep = getattr(net, "_keep_in_fp32_modules", None) or ()
    return not set(keep).isdisjoint(name.split("."))
