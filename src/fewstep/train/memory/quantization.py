"""A frozen network in fewer bits: what three roles share when only adapters are trained.

torchao holds the weights of linear layers as codes with scales, and decodes one layer's at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError

_GROUP = 64  # weights of one scale in NF4, QLoRA's choice (arXiv 2305.14314)
_SCALES = 256  # scales that are themselves encoded processes, its choice too


@torch.no_grad()
def quantize(backbone: Backbone, base: str) -> None:
    """Replace the weights of the linear layers in a backbone's blocks, in place.

    A layer at a time: there is never a second network. Best before the network is moved to its
    device, and needed before adapters are added. In int8 and fp8 a backward pass keeps every
    decoded weight of what it goes through, so it should be one block at a time.

    Args:
        backbone: The model; all of its network is frozen.
        base: Key of the format, as in `config.memory`.

    Raises:
        FewstepError: There is no torchao.
    """
    encode = _encoder(base)
    backbone.net.requires_grad_(False)
    for block in backbone.blocks(backbone.net):
        for layer in [each for each in block.modules() if type(each) is nn.Linear]:
            encode(layer)
            if is_quantized(layer):
                layer.register_forward_pre_hook(_as_autocast)
                layer.register_forward_hook(_as_input)


def _encoder(base: str) -> Callable[[nn.Linear], None]:
    """What encodes a layer's weight in place."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise FewstepError(
            f"memory.base: {base} needs torchao; pip install 'fewstep[quant]', or remove it",
            code="missing-dependency",
        ) from error
    int8, fp8 = quantization.Int8WeightOnlyConfig(), quantization.Float8WeightOnlyConfig()
    encoders: dict[str, Callable[[nn.Linear], None]] = {
        "int8": lambda layer: quantization.quantize_(layer, int8),
        "fp8": lambda layer: quantization.quantize_(layer, fp8, filter_fn=_no_row_is_zero),
        "nf4": _nf4,
    }
    return encoders[base]


def _no_row_is_zero(layer: nn.Module, name: str) -> bool:
    """Whether fp8 can hold a layer: torchao divides rows by their scales, and zeros become NaN."""
    return isinstance(layer, nn.Linear) and bool(layer.weight.any(1).all())


def _nf4(layer: nn.Linear) -> None:
    """Encode in NormalFloat4, unless the size is no multiple of a group's: then leave as it is."""
    from torchao.quantization import to_nf4

    weight = layer.weight.detach()
    groups, rest = divmod(weight.numel(), _GROUP)
    if not rest:
        found = to_nf4(weight.contiguous(), _GROUP, math.gcd(groups, _SCALES))
        layer.weight = nn.Parameter(found, requires_grad=False)


def is_quantized(layer: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is codes."""
    from torchao.quantization import NF4Tensor
    from torchao.utils import TorchAOBaseTensor

    return isinstance(layer, nn.Linear) and isinstance(layer.weight, TorchAOBaseTensor | NF4Tensor)


def _as_autocast(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Inputs in the precision that autocast gives to other layers, and torchao's miss."""
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return tuple(each.to(torch.get_autocast_dtype(kind)) for each in inputs)


def _as_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output in its input's precision, which a bias of another may have changed."""
    return output.to(inputs[0].dtype)
