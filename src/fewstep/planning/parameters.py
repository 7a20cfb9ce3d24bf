"""How many parameters a model has, and how many of them a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fewstep.config import LoraRecipe, StudentRecipe
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        network: Of the network that is distilled.
        trained: Of one trained role; student and fake teacher have as many each.
        tensors: How many tensors these are.
        encoders: Of the text encoders.
        vae: Of what decodes latents, and all else that is no text encoder.
    """

    network: int
    trained: int
    tensors: int
    encoders: int
    vae: int


def count_parameters(backbone: Backbone, recipe: StudentRecipe) -> Parameters:
    """Count a model's parameters; an outline of it does.

    Raises:
        FewstepError: A LoRA target that no layer of the network matches.
    """
    net = backbone.net
    sizes = [parameter.numel() for parameter in net.parameters()]
    if recipe.mode == "lora":
        trained = adapter_sizes(backbone, net, recipe.lora or LoraRecipe())
    else:
        trained = sizes
    parts = backbone.pipe.components.items()
    others = {name: part for name, part in parts if isinstance(part, nn.Module)}
    encoders = sum(_size(others[name]) for name in backbone.encoder_names if name in others)
    rest = [part for name, part in others.items() if name not in backbone.encoder_names]
    vae = sum(_size(part) for part in rest if part is not net)
    return Parameters(sum(sizes), sum(trained), len(trained), encoders, vae)


def adapter_sizes(backbone: Backbone, net: nn.Module, recipe: LoraRecipe) -> list[int]:
    """Parameters of each matrix of one LoRA: rank times the inputs, rank times the outputs."""
    targets = list(recipe.targets or backbone.lora_targets(net))
    modules = {f".{name}": module for name, module in net.named_modules()}
    for target in targets:
        if not any(name.endswith(f".{target}") for name in modules):
            raise FewstepError(
                f"student.lora.targets: no layer of the model ends with {target!r}",
                code="unknown-name",
            )
    sizes, ends = [], tuple(f".{target}" for target in targets)
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if weight is None or not name.endswith(ends):
            continue
        out, *into = weight.shape
        inputs = 1
        for each in into:
            inputs *= each
        sizes += [recipe.rank * inputs, recipe.rank * out]
    return sizes


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
