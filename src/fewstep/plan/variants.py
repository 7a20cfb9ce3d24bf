"""Memory of a recipe and of its variants, and the settings with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewstep.backbones.base import Backbone
from fewstep.config import ConfigError, Recipe, parse_recipe
from fewstep.objectives import Objective
from fewstep.plan.gpus import Gpu
from fewstep.plan.memory import WIDTHS, Item, peak
from fewstep.plan.parameters import count_parameters
from fewstep.plan.peak import growing, held, micro_batch, questions, working
from fewstep.plan.trace import Trace, trace
from fewstep.plan.walk import Known


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
        self._known = Known()

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
        """Settings in the order of what they cost, each with those before, until it fits."""
        for settings, price in remedies(recipe, self._gpus):
            try:
                recipe = changed(recipe, settings)
            except ConfigError:  # it does not go with what the recipe says already
                continue
            size = peak(self.memory(recipe))
            told = tuple(f"{key}={_text(value)}" for key, value in settings.items())
            yield Change(told, price, size, size <= gpu.room)
            if size <= gpu.room:
                return


def remedies(recipe: Recipe, gpus: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Settings that a recipe does not have yet and that take less memory, cheapest first."""
    student, data = recipe.student, recipe.data
    if int(student.gradient_checkpointing) != 1:
        yield {"student.gradient_checkpointing": True}, "one more forward pass for each backward"
    if data.parts(gpus) < data.batch_size // gpus:
        yield {"data.accumulate": data.batch_size}, "one sample at a time"
    if not data.encode_ahead and data.cache is None:
        yield {"data.encode_ahead": True}, "minutes at the start"
    if gpus > 1 and recipe.parallel.shard == "none" and recipe.memory.base is None:
        yield {"parallel.shard": "full"}, "weights travel for every call"
    if student.mode == "full":
        lora = {"student.mode": "lora", "student.optimizer.lr": 1e-4}
        lora |= {"memory.trained_dtype": None, "memory.teacher_dtype": None}
        yield {**lora, "fake_teacher.optimizer.lr": 2e-5}, "adapters in place of all weights"
    if any(each.name == "adamw" for each in (student.optimizer, recipe.fake_teacher.optimizer)):
        names = {f"{role}.optimizer.name": "adamw8bit" for role in ("student", "fake_teacher")}
        yield names, "rounded moments"
    if recipe.memory.base != "nf4":
        yield {"memory.base": "nf4", "parallel.shard": "none"}, "a rounded base, slower layers"


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
