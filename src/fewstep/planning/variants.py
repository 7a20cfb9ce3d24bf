"""Memory of a recipe and of its variants, and the settings with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewstep.config import ConfigError, Recipe, parse_recipe
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.planning.gpus import Gpu
from fewstep.planning.memory import WIDTHS, Item, peak
from fewstep.planning.parameters import count_parameters
from fewstep.planning.peak import growing, held, micro_batch, optimizers, questions, working
from fewstep.planning.trace import Trace, trace
from fewstep.planning.walk import OpCache

Remedy = tuple[dict[str, Any], str]
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
    """Memory of variants of a recipe; what needs no new walk through the network takes none."""

    def __init__(
        self, backbone: Backbone, objectives: list[Objective], gpus: int, cuda: bool
    ) -> None:
        self._backbone, self._objectives = backbone, objectives
        self._gpus, self._cuda = gpus, cuda
        self._traces: dict[tuple[Any, ...], Trace] = {}
        self._known = OpCache()

    def trace(self, recipe: Recipe) -> Trace:
        """A call of the recipe's student."""
        batch, asked = micro_batch(recipe, self._gpus), questions(recipe, self._objectives)
        student = recipe.student.model_dump_json(exclude={"optimizer"})
        dtypes = recipe.model.dtype, recipe.memory.trained_dtype, recipe.memory.teacher_dtype
        grow = growing(recipe, self._gpus)
        key = (batch, asked, student, dtypes, grow)
        if key not in self._traces:
            self._traces[key] = trace(
                recipe,
                self._backbone,
                batch=batch,
                asked=asked,
                growing=grow,
                cuda=self._cuda,
                known=self._known,
            )
        return self._traces[key]

    def memory(self, recipe: Recipe) -> list[Item]:
        """Item by item, at the fullest moment, on one device."""
        seen = self.trace(recipe)
        sizes = count_parameters(self._backbone, recipe.student)
        gradients = sizes.trained * WIDTHS[recipe.memory.trained_dtype or "float32"]
        work = working(recipe, self._objectives, seen, gradients=gradients, gpus=self._gpus)
        return held(recipe, self._backbone, sizes, seen, gpus=self._gpus, work=work)

    def changes(self, recipe: Recipe, gpu: Gpu) -> Iterator[Change]:
        """Settings in the order of what they cost, each on top of those before, until it fits.

        Then those that are not needed beside the others are left out.
        """
        tried: list[Remedy] = []
        for remedy in suggestions(recipe, self._gpus):
            size = self._with(recipe, [*tried, remedy])
            if size is None:  # it does not go with what the recipe says already
                continue
            tried.append(remedy)
            if size <= gpu.room:
                tried = self._needed(recipe, tried, gpu)
                break
        for number, (settings, price) in enumerate(tried, start=1):
            size = self._with(recipe, tried[:number]) or 0
            told = tuple(f"{key}={_text(value)}" for key, value in settings.items())
            yield Change(told, price, size, size <= gpu.room)

    def _needed(self, recipe: Recipe, tried: list[Remedy], gpu: Gpu) -> list[Remedy]:
        """Without those that it fits without, the costliest first."""
        for remedy in reversed(tried[:-1]):
            others = [each for each in tried if each is not remedy]
            size = self._with(recipe, others)
            if size is not None and size <= gpu.room:
                tried = others
        return tried

    def _with(self, recipe: Recipe, tried: list[Remedy]) -> int | None:
        """Peak of a recipe with some settings; None where they do not go together."""
        settings = {key: value for each, _ in tried for key, value in each.items()}
        try:
            return peak(self.memory(changed(recipe, settings)))
        except ConfigError:
            return None


def suggestions(recipe: Recipe, gpus: int) -> Iterator[Remedy]:
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
    if any(each.name == "adamw" for each in optimizers(recipe)):
        names = {f"{role}.optimizer.name": "adamw8bit" for role in ("student", "fake_teacher")}
        yield {**names, **whole}, "rounded moments"


def _offloads(recipe: Recipe) -> Iterator[Remedy]:
    memory = recipe.memory
    if recipe.ema and not memory.offload_ema:
        yield {"memory.offload_ema": True}, "the mean travels for every update"
    plain = all(each.name == "adamw" for each in optimizers(recipe))
    if plain and memory.trained_dtype is None and not memory.offload_optimizer:
        yield {"memory.offload_optimizer": True}, "moments travel for every update"


def _can_shard(recipe: Recipe) -> bool:
    memory = recipe.memory
    others = memory.base, memory.trained_dtype, memory.offload_optimizer, memory.offload_ema
    return not any(others) and all(each.name == "adamw" for each in optimizers(recipe))


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A recipe with other values.

    Raises:
        ConfigError: They do not go with the rest of it.
    """
    data = recipe.model_dump(mode="json")
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[name] = value
    return parse_recipe(data)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()
