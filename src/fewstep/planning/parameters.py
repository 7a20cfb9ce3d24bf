"""How many parameters a model has, and how many of them a recipe trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fewstep.config import LoraRecipe, StudentRecipe
from fewstep.models.base import Backbone
from fewstep.train.memory.adapters import adapter_parameters, add_adapters
from fewstep.train.roles import STUDENT


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        network: Of the network that is distilled.
        trained: Of the student that are trained; the fake teacher has as many.
        encoders: Of the text encoders.
        vae: Of what decodes latents, and all else that is no text encoder.
    """

    network: int
    trained: int
    encoders: int
    vae: int


def count_parameters(backbone: Backbone, recipe: StudentRecipe) -> Parameters:
    """Count a model's parameters; it may be on the meta device.

    Raises:
        FewstepError: A LoRA target that no layer of the network matches.
    """
    net = backbone.net
    trained: Iterable[nn.Parameter] = net.parameters()
    if recipe.mode == "lora":
        adapted = copy.deepcopy(net)
        add_adapters(backbone, adapted, recipe.lora or LoraRecipe(), [STUDENT], seed=0)
        trained = adapter_parameters(adapted, STUDENT).values()
    modules = {
        name: part for name, part in backbone.pipe.components.items() if isinstance(part, nn.Module)
    }
    encoders = [modules.pop(name) for name in backbone.encoder_names if name in modules]
    vae = [part for part in modules.values() if part is not net]
    return Parameters(_count(net), sum(p.numel() for p in trained), _count(*encoders), _count(*vae))


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
