"""Low-rank adapters on a frozen network: what is trained in mode ``lora``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from fewstep.config import LoraRecipe
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError


def add_adapters(
    backbone: Backbone, net: nn.Module, recipe: LoraRecipe, names: Sequence[str], *, seed: int
) -> None:
    """Add LoRA adapters to a network, in place, float32; they change nothing until trained.

    Their matrices A are functions of the seed, so that all start from the same point and a pull of
    one towards another means something.

    Raises:
        FewstepError: A target that no layer of the network matches, or a rank above all of theirs.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from fewstep.train.memory.adapted_linear import AdaptedLinear

    targets = list(recipe.targets or backbone.lora_targets(net))
    modules = [f".{key}" for key, _ in net.named_modules()]
    for target in targets:
        if not any(key.endswith(f".{target}") for key in modules):
            raise FewstepError(
                f"student.lora.targets: no layer of the model ends with {target!r}",
                code="unknown-name",
            )
    widths = [
        min(each.in_features, each.out_features)
        for key, each in net.named_modules()
        if f".{key}".endswith(tuple(f".{target}" for target in targets))
        and hasattr(each, "in_features")
    ]
    if widths and recipe.rank > max(widths):
        raise FewstepError(
            f"student.lora.rank: {recipe.rank} is above {max(widths)}, the rank of the model's "
            "widest adapted layer; lower it",
            code="out-of-range",
        )
    alpha = recipe.rank if recipe.alpha is None else recipe.alpha
    on_meta = all(parameter.is_meta for parameter in net.parameters())
    for name in names:
        config = LoraConfig(r=recipe.rank, lora_alpha=alpha, target_modules=list(targets))
        config._register_custom_module({nn.Linear: AdaptedLinear})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, net, adapter_name=name, low_cpu_mem_usage=on_meta)
        if on_meta:
            for parameter in adapter_parameters(net, name).values():
                parameter.data = parameter.data.to(torch.float32)
        else:
            start_adapter(net, name, seed)


def start_adapter(net: nn.Module, name: str, seed: int) -> None:
    """Gives an adapter the float32 values that it starts from, on the device where it is."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in adapter_parameters(net, name).items():
        start = torch.zeros(parameter.shape)
        if ".lora_A." in key:
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        parameter.data = start.to(parameter.device)


def adapter_parameters(net: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters under names without the adapter's own: ``...lora_A.weight``."""
    return {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in net.named_parameters()
        if ".lora_" in key and f".{name}." in key
    }


def adapter_layers(net: nn.Module) -> list[nn.Module]:
    """The layers of a network that hold adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in net.modules() if isinstance(module, BaseTunerLayer)]
