"""Weight-only quantization of the frozen network that the three roles share in LoRA mode.

torchao stores the weights of linear layers as codes with scales and decodes them layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError

_GROUP = 64  # weights that share a scale in NF4, as in QLoRA (arXiv 2305.14314)
_SCALES = 256  # scales that are quantized together, as in QLoRA


@torch.no_grad()
def quantize(backbone: Backbone, base: str) -> None:
    """Quantizes the linear layers of a backbone's blocks, in place, and freezes the network.

    Layers are converted one by one, so that there are never two networks in memory. Call it before
    adapters are added, and best before the network is moved to its device. In int8 and fp8 autograd
    keeps the decoded weight of every layer for the backward pass; activation checkpointing limits
    that to one block at a time.

    Args:
        backbone: The model.
        base: ``int8``, ``fp8`` or ``nf4``, as in `config.memory`.

    Raises:
        FewstepError: torchao is not installed.
    """
    encode = _quantizer(base)
    backbone.net.requires_grad_(False)
    for block in backbone.blocks(backbone.net):
        for layer in [module for module in block.modules() if type(module) is nn.Linear]:
            encode(layer)
            if is_quantized(layer):
                layer.register_forward_pre_hook(_as_autocast)
                layer.register_forward_hook(_as_input)


def _quantizer(base: str) -> Callable[[nn.Linear], None]:
    """The function that quantizes a layer's weight in place."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise FewstepError(
            f"memory.base: {base} needs torchao; pip install 'fewstep[quant]', or remove it",
            code="missing-dependency",
        ) from error
    int8, fp8 = quantization.Int8WeightOnlyConfig(), quantization.Float8WeightOnlyConfig()
    quantizers: dict[str, Callable[[nn.Linear], None]] = {
        "int8": lambda layer: quantization.quantize_(layer, int8),
        "fp8": lambda layer: quantization.quantize_(layer, fp8, filter_fn=_no_row_is_zero),
        "nf4": _nf4,
    }
    return quantizers[base]


def _no_row_is_zero(layer: nn.Module, name: str) -> bool:
    """Whether fp8 works for a layer: torchao divides rows by their maximum, 0 / 0 is NaN."""
    return isinstance(layer, nn.Linear) and bool(layer.weight.any(1).all())


def _nf4(layer: nn.Linear) -> None:
    """Quantizes to NormalFloat4; a weight whose size is no multiple of 64 stays as it is."""
    from torchao.quantization import to_nf4

    weight = layer.weight.detach()
    groups, rest = divmod(weight.numel(), _GROUP)
    if not rest:
        quantized = to_nf4(weight.contiguous(), _GROUP, math.gcd(groups, _SCALES))
        layer.weight = nn.Parameter(quantized, requires_grad=False)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a module is a linear layer with a quantized weight."""
    from torchao.quantization import NF4Tensor
    from torchao.utils import TorchAOBaseTensor

    return isinstance(layer, nn.Linear) and isinstance(layer.weight, TorchAOBaseTensor | NF4Tensor)


def _as_autocast(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Casts inputs as autocast does for other layers; it does not know torchao's."""
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in inputs)


def _as_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Casts the output to the input's dtype, which adding a bias of another dtype changes."""
    return output.to(inputs[0].dtype)
