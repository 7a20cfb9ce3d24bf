"""The settings with which a recipe would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewstep.config import ConfigError, Recipe
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import memory_items, optimizers, peak
from fewstep.train.memory.offload import refuse_sharded
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


def changes(estimate: Estimate, room: int) -> Iterator[Change]:
    """Settings in the order of what they cost, each on top of those before, until it fits.

    Those that turn out not to be needed beside the others are left out.

    Args:
        estimate: What the recipe takes as it is.
        room: Bytes that a device has.
    """
    chosen: list[Suggestion] = []
    for suggestion in suggestions(estimate.recipe, estimate.gpus):
        size = _peak_with(estimate, [*chosen, suggestion])
        if size is None:  # it does not go with the recipe's other settings
            continue
        chosen.append(suggestion)
        if size <= room:
            chosen = _needed(estimate, chosen, room)
            break
    for number, (settings, price) in enumerate(chosen, start=1):
        size = _peak_with(estimate, chosen[:number]) or 0
        texts = tuple(
            f"{key}={'null' if value is None else str(value).lower()}"
            for key, value in settings.items()
        )
        yield Change(texts, price, size, size <= room)


def _needed(estimate: Estimate, chosen: list[Suggestion], room: int) -> list[Suggestion]:
    """Without those that are not needed, the costliest tried first."""
    for suggestion in reversed(chosen[:-1]):
        others = [other for other in chosen if other is not suggestion]
        size = _peak_with(estimate, others)
        if size is not None and size <= room:
            chosen = others
    return chosen


def _peak_with(estimate: Estimate, chosen: list[Suggestion]) -> int | None:
    """Peak of a recipe with some settings; None where they do not go together."""
    settings = {key: value for each, _ in chosen for key, value in each.items()}
    try:
        return peak(memory_items(estimate.variant(settings)))
    except ConfigError:
        return None


def suggestions(recipe: Recipe, gpus: int) -> list[Suggestion]:
    """Settings that a recipe does not have yet and that take less memory, cheapest first."""
    student, data, memory = recipe.student, recipe.data, recipe.memory
    full, shard = student.mode == "full", recipe.parallel.shard
    lora = {"student.mode": "lora", "student.optimizer.lr": 1e-4}
    keys = ("trained_dtype", "teacher_dtype")
    lora |= {f"memory.{key}": None for key in keys if getattr(memory, key)}
    lora |= {"fake_teacher.optimizer.lr": 2e-5}
    whole = {"parallel.shard": "none"} if gpus > 1 else {}  # for what cannot be split
    rounded = {f"{role}.optimizer.name": "adamw8bit" for role in ("student", "fake_teacher")}
    rows: list[tuple[object, dict[str, Any], str]] = [  # whether it applies, settings, their cost
        (int(student.gradient_checkpointing) != 1, {"student.gradient_checkpointing": True},
         "one more forward pass for each backward"),
        (data.parts(gpus) < data.batch_size // gpus, {"data.accumulate": data.batch_size},
         "one sample at a time"),
        (recipe.train.step == "fused" and recipe.train.batch_teachers,
         {"train.batch_teachers": False}, "more and smaller calls"),
        (not data.encode_ahead and data.cache is None, {"data.encode_ahead": True},
         "minutes at the start"),
        (gpus > 1 and shard == "none" and _can_shard(recipe), {"parallel.shard": "full"},
         "weights travel for every call"),
        (full and gpus == 1 and recipe.ema and not memory.offload_ema,
         {"memory.offload_ema": True}, "the mean travels for every update"),
        (full and gpus == 1 and not memory.offload_optimizer, {"memory.offload_optimizer": True},
         "moments travel for every update"),
        (full, lora, "adapters in place of all weights"),
        (memory.base != "nf4", {"memory.base": "nf4", **whole}, "a rounded base, slower layers"),
        (any(optimizer.name == "adamw" for optimizer in optimizers(recipe)),
         {**rounded, **whole}, "rounded moments"),
    ]  # fmt: skip
    return [(settings, cost) for applies, settings, cost in rows if applies]


def _can_shard(recipe: Recipe) -> bool:
    try:
        refuse_sharded(recipe)
    except FewstepError:
        return False
    return True
