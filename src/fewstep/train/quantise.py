"""A frozen network in fewer bits: what three roles share when only adapters are trained.

Weights of linear layers are stored as codes with scales and become numbers again for one layer at a
time, forwards and backwards, so that no graph keeps them. The layers look like `nn.Linear` to all
who ask, adapters included; they cannot be trained.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.base import Backbone

_GROUP = 64  # weights of one scale in NF4, QLoRA's choice (arXiv 2305.14314)
_TINY = 1e-12  # a row of zeros has a scale, too


class Quantised(nn.Linear):
    """A frozen linear layer whose weight is codes and scales: float32 only while it is used."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Takes over a layer's weight and bias."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scales = self.encode(linear.weight.detach().float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._dtype = linear.weight.dtype

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, uint8 or int8, and scales, float32, of a weight [out, in], float32."""
        raise NotImplementedError

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the codes stand for."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, decoded, in the precision that it had."""
        return self.decode(self._dtype)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """X W^T + b, computed in autocast's precision, else in that of x."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(x.to(dtype), self, bias)


class _Product(torch.autograd.Function):
    """A product with a decoded weight that is decoded once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.decode(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ ctx.layer.decode(grad.dtype), None, None


class Int8(Quantised):
    """One scale a row, 255 even steps: 1 byte a weight."""

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds to the nearest step."""
        scales = weight.abs().amax(1, keepdim=True).clamp_min(_TINY) / 127
        return (weight / scales).round().to(torch.int8), scales

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Steps times their size."""
        return (self.codes * self.scales).to(dtype)


class Fp8(Quantised):
    """One scale a row, float8_e4m3: 1 byte a weight, finer near zero."""

    LARGEST: ClassVar[float] = 448.0

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rounds to the nearest float; kept as bytes, which no cast of the network can touch."""
        scales = weight.abs().amax(1, keepdim=True).clamp_min(_TINY) / cls.LARGEST
        return (weight / scales).to(torch.float8_e4m3fn).view(torch.uint8), scales

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Floats times the scale."""
        return (self.codes.view(torch.float8_e4m3fn).float() * self.scales).to(dtype)


def nf4_levels() -> Tensor:
    """The 16 numbers of NormalFloat4: quantiles of the normal distribution, 0 and +-1 among them.

    QLoRA (arXiv 2305.14314), section 3; ascending, [16], float32.
    """
    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2
    upper = torch.special.ndtri(torch.linspace(edge, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(edge, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper.flip(0)])
    return (levels / levels.max()).float()


class Nf4(Quantised):
    """One scale for 64 weights, NormalFloat4: 4.5 bits a weight."""

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the nearest level; two codes share a byte."""
        padding = -weight.numel() % _GROUP
        groups = functional.pad(weight.flatten(), (0, padding)).view(-1, _GROUP)
        scales = groups.abs().amax(1, keepdim=True).clamp_min(_TINY)
        levels = nf4_levels().to(weight.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(groups / scales, between).to(torch.uint8).view(-1, 2)
        return codes[:, 0] | codes[:, 1] << 4, scales

    def decode(self, dtype: torch.dtype) -> Tensor:
        """Levels times their group's scale."""
        # Two levels for every byte there is: one look-up instead of two and their interleaving.
        pairs = _pairs(self.codes.device)[self.codes.int()]
        weight = (pairs.view(-1, _GROUP) * self.scales).flatten()
        size = self.out_features * self.in_features
        return weight[:size].view(self.out_features, self.in_features).to(dtype)


_PAIRS: dict[torch.device, Tensor] = {}


def _pairs(device: torch.device) -> Tensor:
    if device not in _PAIRS:
        levels = nf4_levels()
        byte = torch.arange(256)
        _PAIRS[device] = torch.stack([levels[byte % 16], levels[byte // 16]], 1).to(device)
    return _PAIRS[device]


_FORMATS: dict[str, type[Quantised]] = {"int8": Int8, "fp8": Fp8, "nf4": Nf4}


@torch.no_grad()
def quantise(backbone: Backbone, base: str) -> None:
    """Replace the linear layers of the blocks of a backbone's own network, in place.

    A layer at a time: there is never a second network. Best before the network is moved to its
    device, and needed before adapters are added.

    Args:
        backbone: The model; all of its network is frozen.
        base: Key of the format, as in `config_memory`.
    """
    make = _FORMATS[base]
    backbone.net.requires_grad_(False)
    for block in backbone.blocks(backbone.net):
        inside = list(block.named_modules())
        for name, module in inside:
            if type(module) is nn.Linear:
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, make(module))
