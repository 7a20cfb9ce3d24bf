"""Weight-only quantization of the frozen network that the three roles share in LoRA mode.

torchao stores the weights of linear layers as codes with scales and decodes them layer by layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError

_GROUP = 64  # weights that share a scale in NF4, as in QLoRA (arXiv 2305.14314)
_SCALES = 256  # scales that are quantized together, as in QLoRA
_AT_ONCE = 2**18  # weights whose codes are looked for at once: they fit a processor's cache


@torch.no_grad()
def quantize(
    backbone: Backbone,
    base: str,
    *,
    device: torch.device | str | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Quantizes the linear layers of a backbone's blocks, in place, and freezes the network.

    Layers are encoded one by one, and their codes go to where the weights were: a device need not
    hold the network as it was. Call it before adapters are added. In int8 and fp8 autograd keeps
    the decoded weight of every layer for the backward pass; activation checkpointing limits that to
    one block at a time.

    Args:
        backbone: The model.
        base: ``int8``, ``fp8`` or ``nf4``, as in `config.memory`.
        device: What computes the codes, which do not depend on it; None: where the weights are.
        kept: What an earlier call has returned for these weights, which are then not looked at.

    Returns:
        The parts of all encoded weights, by name.

    Raises:
        FewstepError: torchao is not installed.
    """
    encode = encoder(base)
    backbone.net.requires_grad_(False)
    own: dict[str, dict[str, Tensor]] = {}
    for key, part in (kept or {}).items():
        layer, _, name = key.rpartition(".")
        own.setdefault(layer, {})[name] = part
    parts: dict[str, Tensor] = {}
    for layer, linear in linear_layers(backbone).items():
        name, weight = f"{layer}.weight", linear.weight.detach()
        if kept is None:
            encoded = encode(weight.to(device or weight.device))
            encoded = None if encoded is None else encoded.to(weight.device)
        elif name in own:
            encoded = _assembled(own[name], encode(torch.empty_like(weight, device="meta")))
        else:
            encoded = None
        if encoded is not None:
            linear.weight = nn.Parameter(encoded, requires_grad=False)
            linear.register_forward_pre_hook(_as_autocast)
            linear.register_forward_hook(_as_input)
            for key in encoded.__tensor_flatten__()[0]:
                parts[f"{name}.{key}"] = getattr(encoded, key)
    return parts


def linear_layers(backbone: Backbone) -> dict[str, nn.Linear]:
    """The layers that are quantized, by their names in the network: those of its blocks."""
    inside = {id(each) for block in backbone.blocks(backbone.net) for each in block.modules()}
    return {
        name: module
        for name, module in backbone.net.named_modules()
        if type(module) is nn.Linear and id(module) in inside
    }


def encoder(base: str) -> Callable[[Tensor], Any]:
    """The function that encodes a weight, or gives None where the format does not fit it."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise FewstepError(
            f"memory.base: {base} needs torchao; pip install 'fewstep[quant]', or remove it",
            code="missing-dependency",
        ) from error
    if base == "nf4":
        return _nf4
    config = {
        "int8": quantization.Int8WeightOnlyConfig,
        "fp8": quantization.Float8WeightOnlyConfig,
    }[base]()

    def encode(weight: Tensor) -> Any:
        if base == "fp8" and not weight.is_meta and not weight.any(1).all():
            return None  # torchao divides rows by their maximum, 0 / 0 is NaN
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantization.quantize_(layer, config)
        return layer.weight.detach()

    return encode


def _nf4(weight: Tensor) -> Any:
    """NormalFloat4, bit for bit as torchao's `to_nf4` makes it on a processor.

    That compares every weight with all 16 levels, which is most of its time; here each is compared
    with the 15 bounds between them, a few at a time. The scales, one of 64 numbers, are always
    made on the processor: a mean depends on the order in which it is summed.
    """
    from torchao.quantization import NF4Tensor, to_nf4

    groups, rest = divmod(weight.numel(), _GROUP)
    if rest:
        return None
    scales = math.gcd(groups, _SCALES)
    empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    like = to_nf4(empty, _GROUP, scales)
    if weight.is_meta:
        return like
    rows = weight.reshape(groups, _GROUP)
    largest = rows.abs().amax(1, keepdim=True)
    codes = torch.empty(groups, _GROUP // 2, dtype=torch.uint8, device=weight.device)
    levels, bounds = _levels(weight.dtype)
    step = _AT_ONCE // _GROUP
    for some, scale, out in zip(
        *(each.split(step) for each in (rows, largest, codes)), strict=True
    ):
        scaled = (some / scale).float()  # NaN in a group of zeros is above no bound, as there
        found = torch.zeros(scaled.shape, dtype=torch.uint8, device=weight.device)
        for bound in bounds:
            found += scaled > bound
        torch.bitwise_or(found[:, ::2] << 4, found[:, 1::2], out=out)
    parts = NF4Tensor.double_quantize_scalers(largest.flatten().cpu(), 1, scales)
    names = ("quantized_scalers", "quantization_factor", "scaler_mean")
    others = {name: part.to(weight.device) for name, part in zip(names, parts, strict=True)}
    tensors = others | {
        "quantized_data": codes.flatten(),
        "nf4": levels.to(weight.device, copy=True),
    }
    return _assembled(tensors, like)


@functools.cache
def _levels(dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    """NF4's 16 levels, and the largest number of a dtype that torchao rounds to each but the last.

    Differences are rounded, too, so that in a narrow dtype the bounds are not halfway.
    """
    from torchao.quantization import NF4Tensor, to_nf4

    levels: Tensor = to_nf4(torch.ones(_GROUP, dtype=dtype), _GROUP, 1).nf4
    low, high, index = levels[:-1], levels[1:], torch.arange(15)
    for _ in range(64):  # more halvings than any dtype has numbers between two levels
        middle = (low + high) / 2
        below = NF4Tensor.quantize_tensor_nearest(middle, levels) <= index
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return levels, low.tolist()


def _assembled(parts: Mapping[str, Tensor], like: Any) -> Any:
    """An encoded weight of its parts; `like` is one on the meta device."""
    _, how = like.__tensor_flatten__()
    if "tensor_meta" in how:
        device = next(iter(parts.values())).device
        how = {**how, "tensor_meta": replace(how["tensor_meta"], device=device)}
    return type(like).__tensor_unflatten__(dict(parts), how, like.shape, like.stride())


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
