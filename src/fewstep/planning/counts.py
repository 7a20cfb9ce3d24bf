"""What a model has and what an iteration calls: parameters, and network evaluations.

Evaluations are counted by running a recipe's objectives on stand-in networks.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.config import LoraRecipe, Recipe, StudentRecipe
from fewstep.core.noise import Draws
from fewstep.core.types import Anchor, Conditioning
from fewstep.models.base import Backbone
from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.objectives import AnchorBatch, Objective, contexts, drive, evaluate
from fewstep.planning.trace import MetaNetworks
from fewstep.train.memory.adapters import adapter_parameters, add_adapters
from fewstep.train.roles import STUDENT
from fewstep.train.step import Algorithm


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
    modules = {
        name: part for name, part in backbone.pipe.components.items() if isinstance(part, nn.Module)
    }
    encoders = [modules.pop(name) for name in backbone.encoder_names if name in modules]
    vae = [part for part in modules.values() if part is not net]
    trained = trained_shapes(backbone, recipe)
    return Parameters(count(net), sum(map(math.prod, trained)), count(*encoders), count(*vae))


def trained_shapes(backbone: Backbone, recipe: StudentRecipe) -> list[torch.Size]:
    """Shapes of the parameters that are trained of a student, and likewise of a fake teacher.

    Raises:
        FewstepError: A LoRA target that no layer of the network matches.
    """
    parameters: Iterable[nn.Parameter] = backbone.net.parameters()
    if recipe.mode == "lora":
        adapted = copy.deepcopy(backbone.net)
        add_adapters(backbone, adapted, recipe.lora or LoraRecipe(), [STUDENT], seed=0)
        parameters = adapter_parameters(adapted, STUDENT).values()
    return [parameter.shape for parameter in parameters]


def count(*modules: nn.Module) -> int:
    """Number of parameters of some modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations of one iteration, per sample, on average.

    Attributes:
        simulation: Of the student, to reach the anchor.
        fake_teacher: Of the fake teacher, to train it.
        student: Of the student, for the objectives; it is updated in every k-th iteration.
        teachers: Of teacher and fake teacher, for the objectives.
        networks: To train networks that objectives bring along.
        backward: How many of them a gradient flows back through.
    """

    simulation: float
    fake_teacher: float
    student: float
    teachers: float
    networks: float
    backward: float

    @property
    def total(self) -> float:
        """All of them, as a run's metrics count them."""
        teachers = self.fake_teacher + self.teachers + self.networks
        return self.simulation + self.student + teachers


class CountingNetworks:
    """Networks that objectives can query: calls are counted, velocities are the latents.

    Attributes:
        samples: Evaluations by network.
        largest: Largest batch of one call, by network.
        backward: Evaluations with gradients.
        samples_of_networks: Evaluations that train networks of objectives.
        modules: Networks that objectives bring along, by name.
    """

    def __init__(self, recipe: Recipe, backbone: Backbone, objectives: Sequence[Objective]) -> None:
        self.samples: Counter[str] = Counter()
        self.largest: dict[str, int] = {}
        self.backward = 0
        self.samples_of_networks = 0
        self.trained = {
            name: network
            for objective in objectives
            for name, network in objective.networks(backbone).items()
        }
        self.modules = {name: network.module for name, network in self.trained.items()}
        self._weight = torch.ones((), requires_grad=True)
        self._meta = MetaNetworks(recipe, backbone)
        self._capturing = False

    def velocity(self, network: str, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The latents, with a graph if gradients are enabled: [B, ...] -> [B, ...]."""
        self.samples[network] += len(xt)
        self.largest[network] = max(self.largest.get(network, 0), len(xt))
        self.backward += len(xt) if torch.is_grad_enabled() else 0
        if self._capturing:
            with self._meta.metered(network):
                self._meta.velocity(network, len(xt))
        return xt * self._weight

    @contextmanager
    def capture(self, network: str, blocks: Sequence[int]) -> Iterator[list[tuple[Tensor, ...]]]:
        """Context that collects zeros in the shapes of what some blocks return in a call."""
        features: list[tuple[Tensor, ...]] = []
        with self._meta.roles.capture(network, blocks) as outputs:
            self._capturing = True
            yield features
            self._capturing = False
        features += [tuple(torch.zeros(each.shape) for each in block) for block in outputs]


def count_calls(recipe: Recipe, backbone: Backbone, algorithm: Algorithm) -> CountingNetworks:
    """What one sample costs in a student update, and in updates of the objectives' networks."""
    networks = CountingNetworks(recipe, backbone, algorithm.objectives)
    xt, sigma = torch.zeros(1, *algorithm.latent_shape), torch.full((1,), 0.5)
    anchor = Anchor(xt, sigma, torch.zeros(1), velocity=xt, x0=xt, final=xt)
    blank = dummy_conditioning(backbone, 1, torch.float32).tensors
    cond = Conditioning({name: torch.zeros_like(x, device="cpu") for name, x in blank.items()})
    batch = AnchorBatch(anchor, cond, cond, Draws(0, 0), torch.zeros(1, dtype=torch.long))
    for objective in algorithm.objectives:
        for name in objective.networks(backbone):
            with torch.no_grad():
                ((_, at),) = contexts([objective], networks, batch)
            drive([objective.network_loss(name, at)], networks, batched=True)
    networks.samples_of_networks = networks.samples.total()
    networks.samples.clear()
    networks.backward = 0
    for group in algorithm.backward_groups:
        evaluate(group, networks, batch, batched=algorithm.batched)
    return networks
