"""Memory of variants of a recipe, and the settings with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewstep.config import ConfigError, Recipe
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.planning.evaluations import (
    CountingNetworks,
    Evaluations,
    count_calls,
    count_evaluations,
)
from fewstep.planning.gpus import Gpu
from fewstep.planning.memory import (
    WIDTHS,
    Item,
    activations,
    gradients_arise,
    held,
    micro_batch,
    of_objectives,
    optimizers,
    peak,
)
from fewstep.planning.op_cache import OpCache
from fewstep.planning.parameters import Parameters, count_parameters
from fewstep.planning.trace import MetaNetworks, Trace, trace
from fewstep.train.memory.offload import refuse_sharded
from fewstep.train.step import Algorithm
from fewstep.utils.errors import FewstepError

Suggestion = tuple[dict[str, Any], str]
"""Settings by key, and what they cost."""


@dataclass(frozen=True)
class Change:
    """A setting that takes less memory, on top of those before it.

    Attributes:
        settings: As ``--set`` takes them.
        price: What it costs.
        bytes: Peak on one device with it.
        fits: Whether that is within the device's room.
    """

    settings: tuple[str, ...]
    price: str
    bytes: int
    fits: bool


class Estimate:
    """What a recipe and its variants take; variants with equal calls share a trace."""

    def __init__(
        self, backbone: Backbone, objectives: list[Objective], gpus: int = 1, *, cuda: bool = True
    ) -> None:
        """An estimate for a model.

        Args:
            backbone: The model, on the meta device.
            objectives: The recipe's.
            gpus: Devices that work together.
            cuda: Follow CUDA's autocast; else a processor's.
        """
        self._backbone, self._objectives = backbone, objectives
        self._gpus, self._cuda = gpus, cuda
        self._op_cache = OpCache()
        self._traces: dict[Any, Trace] = {}
        self._sizes: dict[str, Parameters] = {}
        self._calls: dict[Any, CountingNetworks] = {}

    def parameters(self, recipe: Recipe) -> Parameters:
        """The model's numbers of parameters, and those of the student."""
        key = recipe.student.model_dump_json(include={"mode", "lora"})
        if key not in self._sizes:
            self._sizes[key] = count_parameters(self._backbone, recipe.student)
        return self._sizes[key]

    def algorithm(self, recipe: Recipe) -> Algorithm:
        """What an iteration does."""
        size = recipe.resolution.height, recipe.resolution.width
        shape = self._backbone.latent_shape(*size)
        shift = self._backbone.effective_shift(recipe.grid.shift, *size)
        return Algorithm.from_recipe(recipe, self._objectives, latent_shape=shape, shift=shift)

    def calls(self, recipe: Recipe) -> CountingNetworks:
        """What one sample costs in a student update."""
        algorithm = self.algorithm(recipe)
        key = algorithm.fused, algorithm.batch_teachers
        if key not in self._calls:
            self._calls[key] = count_calls(recipe, self._backbone, algorithm)
        return self._calls[key]

    def evaluations(self, recipe: Recipe) -> Evaluations:
        """Network evaluations of an iteration."""
        parts = recipe.data.parts(self._gpus)
        return count_evaluations(self.algorithm(recipe), self.calls(recipe), parts=parts)

    def trace(self, recipe: Recipe) -> Trace:
        """A call of the recipe's networks."""
        batch, largest = micro_batch(recipe, self._gpus), self.calls(recipe).largest
        with_gradients = gradients_arise(recipe, self._gpus)
        student = recipe.student.model_dump_json(exclude={"optimizer"})
        dtypes = recipe.model.dtype, recipe.memory.trained_dtype, recipe.memory.teacher_dtype
        key = (batch, tuple(largest.items()), with_gradients, student, dtypes)
        if key not in self._traces:
            networks = MetaNetworks(
                recipe, self._backbone, cuda=self._cuda, op_cache=self._op_cache
            )
            self._traces[key] = trace(
                networks, batch=batch, largest=largest, with_gradients=with_gradients
            )
        return self._traces[key]

    def memory(self, recipe: Recipe) -> list[Item]:
        """Item by item, at the fullest moment, on one device."""
        sizes, algorithm = self.parameters(recipe), self.algorithm(recipe)
        gradients = sizes.trained * WIDTHS[recipe.memory.trained_dtype]
        working = activations(
            recipe, algorithm, self.trace(recipe), gradients=gradients, gpus=self._gpus
        )
        items = held(recipe, self._backbone, sizes, gpus=self._gpus, working=working)
        return items + of_objectives(self.calls(recipe).trained.values())

    def changes(self, recipe: Recipe, gpu: Gpu) -> Iterator[Change]:
        """Settings in the order of what they cost, each on top of those before, until it fits.

        Those that turn out not to be needed beside the others are left out.
        """
        chosen: list[Suggestion] = []
        for suggestion in suggestions(recipe, self._gpus):
            size = self._peak_with(recipe, [*chosen, suggestion])
            if size is None:  # it does not go with the recipe's other settings
                continue
            chosen.append(suggestion)
            if size <= gpu.room:
                chosen = self._needed(recipe, chosen, gpu)
                break
        for number, (settings, price) in enumerate(chosen, start=1):
            size = self._peak_with(recipe, chosen[:number]) or 0
            texts = tuple(f"{key}={_text(value)}" for key, value in settings.items())
            yield Change(texts, price, size, size <= gpu.room)

    def _needed(self, recipe: Recipe, chosen: list[Suggestion], gpu: Gpu) -> list[Suggestion]:
        """Without those that are not needed, the costliest tried first."""
        for suggestion in reversed(chosen[:-1]):
            others = [other for other in chosen if other is not suggestion]
            size = self._peak_with(recipe, others)
            if size is not None and size <= gpu.room:
                chosen = others
        return chosen

    def _peak_with(self, recipe: Recipe, chosen: list[Suggestion]) -> int | None:
        """Peak of a recipe with some settings; None where they do not go together."""
        settings = {key: value for each, _ in chosen for key, value in each.items()}
        try:
            return peak(self.memory(changed(recipe, settings)))
        except ConfigError:
            return None


def suggestions(recipe: Recipe, gpus: int) -> Iterator[Suggestion]:
    """Settings that a recipe does not have yet and that take less memory, cheapest first."""
    student, data, memory = recipe.student, recipe.data, recipe.memory
    if int(student.gradient_checkpointing) != 1:
        yield {"student.gradient_checkpointing": True}, "one more forward pass for each backward"
    if data.parts(gpus) < data.batch_size // gpus:
        yield {"data.accumulate": data.batch_size}, "one sample at a time"
    if recipe.train.step == "fused" and recipe.train.batch_teachers:
        yield {"train.batch_teachers": False}, "more and smaller calls"
    if not data.encode_ahead and data.cache is None:
        yield {"data.encode_ahead": True}, "minutes at the start"
    if gpus > 1 and recipe.parallel.shard == "none" and _can_shard(recipe):
        yield {"parallel.shard": "full"}, "weights travel for every call"
    if student.mode == "full":
        if gpus == 1:
            yield from _offloads(recipe)
        lora = {"student.mode": "lora", "student.optimizer.lr": 1e-4}
        keys = ("trained_dtype", "teacher_dtype")
        lora |= {f"memory.{key}": None for key in keys if getattr(memory, key)}
        yield {**lora, "fake_teacher.optimizer.lr": 2e-5}, "adapters in place of all weights"
    whole = {"parallel.shard": "none"} if gpus > 1 else {}  # what follows cannot be split
    if memory.base != "nf4":
        yield {"memory.base": "nf4", **whole}, "a rounded base, slower layers"
    if any(optimizer.name == "adamw" for optimizer in optimizers(recipe)):
        names = {f"{role}.optimizer.name": "adamw8bit" for role in ("student", "fake_teacher")}
        yield {**names, **whole}, "rounded moments"


def _offloads(recipe: Recipe) -> Iterator[Suggestion]:
    memory = recipe.memory
    if recipe.ema and not memory.offload_ema:
        yield {"memory.offload_ema": True}, "the mean travels for every update"
    if not memory.offload_optimizer:
        yield {"memory.offload_optimizer": True}, "moments travel for every update"


def _can_shard(recipe: Recipe) -> bool:
    try:
        refuse_sharded(recipe)
    except FewstepError:
        return False
    return True


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A recipe with other values.

    Raises:
        ConfigError: They do not go with the rest of it.
    """
    data = recipe.model_dump(mode="json")
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = data
        for part in sections:
            section = section[part]
        section[name] = value
    return Recipe.from_values(data)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()
