"""What a recipe will take on given accelerators: memory, time and money, before any is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fewstep.config import ConfigError, Recipe
from fewstep.planning.disk import checkpoint_groups, checkpoints_kept, while_written
from fewstep.planning.dry_run import Forecast, gb, millions
from fewstep.planning.estimate import Estimate
from fewstep.planning.gpus import Gpu, find_gpu
from fewstep.planning.memory import memory_items, optimizers, peak, sampling_items
from fewstep.train.memory.offload import refuse_sharded
from fewstep.utils.errors import FewstepError
from fewstep.utils.tables import Table

UTILISATION = {False: 0.25, True: 0.29}
"""Share of an accelerator's stated matrix peak that training is assumed to reach, by whether blocks
are compiled: as measured on one NVIDIA H200, SD3-Medium at 1024^2, four samples at a time, see
docs/plan.md. Other accelerators, models and batches reach other shares."""


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


@dataclass(frozen=True, kw_only=True)
class Plan(Forecast):
    """What a recipe comes to on given accelerators.

    Attributes:
        gpu: Kind of accelerator.
        gpus: How many.
        forward_flops: Of one forward pass of one sample.
        iteration_flops: Of one iteration, all samples; a student update is every k-th.
        run_flops: Of the run.
        changes: What would make it fit, if it does not; cumulative.
        utilisation: Share of the matrix peak that is reached.
        assumed: Whether that share is the default, of one measurement.
        hours: That the run takes.
        price: Of one accelerator and hour; None: not given.
    """

    gpu: Gpu
    gpus: int
    forward_flops: float
    iteration_flops: float
    run_flops: float
    changes: tuple[Change, ...]
    utilisation: float
    assumed: bool
    hours: float
    price: float | None

    @property
    def fits(self) -> bool:
        """Whether the peak is within the accelerator's room."""
        return self.peak_bytes <= self.gpu.room

    @property
    def cost(self) -> float | None:
        """Of the run, in the price's currency."""
        return None if self.price is None else self.price * self.hours * self.gpus

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        return super().as_json() | {
            "peak_bytes": self.peak_bytes,
            "fits": self.fits,
            "room_bytes": self.gpu.room,
            "cost": self.cost,
            "measured": False,
        }

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table that people are shown."""
        sizes, evaluations = self.parameters, self.evaluations
        verdict = "fits" if self.fits else "does not fit"
        room = f"{verdict} into {gb(self.gpu.room)}: {self.gpu.memory} less 8 % for the libraries"
        figures = [
            ("parameters", f"{millions(sizes.network)} million"),
            ("trained, in each of two roles", f"{millions(sizes.trained)} million"),
            ("a forward pass of one sample", f"{self.forward_flops / 1e12:.2f} TFLOP"),
            ("evaluations an iteration, per sample", evaluations.total),
            ("of them backward too", evaluations.backward),
            ("an iteration, all samples", f"{self.iteration_flops / 1e15:.3g} PFLOP"),
            ("the run", f"{self.run_flops / 1e18:.3g} EFLOP"),
        ]
        share = f"{self.utilisation:g} of {self.gpu.tflops:g} TFLOP/s{', assumed' * self.assumed}"
        cost = ("cost", "-", "give a price, of one device and hour")
        if self.cost is not None:
            cost = ("cost", f"{self.cost:.0f}", f"{self.price:g} x {self.gpus} x hours")
        time = [("hours", f"{self.hours:.3g}", f"{share}; no previews, no evaluation"), cost]
        title = f"{self.model} ({self.family}) on {self.gpus} x {self.gpu.name}"
        tables: list[Table] = [
            (title, ("what", "how much"), figures),
            *self.memory_tables(room),
            ("", ("time", "estimate", "made of"), time),
        ]
        if self.changes:
            rows: list[tuple[object, ...]] = []
            for change in self.changes:  # a line for each setting; figures are in the last
                *others, last = change.settings
                rows += [(setting, "", "", "") for setting in others]
                rows.append((last, gb(change.bytes), change.fits, change.price))
            title = "settings that take less, each on top of those above it"
            tables.append((title, ("--set", "peak GB", "fits", "costs"), rows))
        return tables


def plan(
    recipe: Recipe,
    gpu: str,
    *,
    gpus: int = 1,
    utilisation: float | None = None,
    price: float | None = None,
    cuda: bool = True,
) -> Plan:
    """Estimate memory, time and cost from the model's configurations alone; writes nothing.

    Args:
        recipe: What would be run.
        gpu: Kind of accelerator, see `fewstep.planning.gpus`.
        gpus: How many of them work together.
        utilisation: Share of the matrix peak that training reaches; None: `UTILISATION`.
        price: Of one accelerator and hour, for the cost.
        cuda: Count memory as on CUDA; else as on a processor.

    Raises:
        FewstepError: Such an accelerator is not known, or the run would be refused.
    """
    kind = find_gpu(gpu)
    estimate = Estimate.load(recipe, gpus, cuda=cuda, room=kind.room)
    size = recipe.data.batch_size
    if size % gpus:
        raise FewstepError(
            f"data.batch_size: {size} samples cannot be shared evenly by {gpus} devices; "
            f"take a multiple of {gpus}, or another number of devices",
            code="out-of-range",
        )
    forward, evaluations = estimate.trace.flops, estimate.evaluations
    iteration = estimate.iteration_flops
    run, share = (
        iteration * recipe.train.steps,
        utilisation or UTILISATION[bool(recipe.student.compile)],
    )
    return Plan(
        model=recipe.model.path,
        family=estimate.backbone.name,
        gpu=kind,
        gpus=gpus,
        parameters=estimate.parameters,
        evaluations=evaluations,
        notes=estimate.notes,
        forward_flops=forward,
        iteration_flops=iteration,
        run_flops=run,
        memory=(*memory_items(estimate), while_written(estimate)),
        sampling=tuple(sampling_items(estimate)),
        checkpoint=checkpoint_groups(estimate),
        checkpoints=checkpoints_kept(recipe),
        changes=tuple(changes(estimate, kind.room)),
        utilisation=share,
        assumed=utilisation is None,
        hours=run / (gpus * kind.tflops * 1e12 * share) / 3600,
        price=price,
    )


def changes(estimate: Estimate, room: int) -> Iterator[Change]:
    """Settings in the order of what they cost, each on top of those before, until it fits.

    Those that turn out not to be needed beside the others are left out.

    Args:
        estimate: What the recipe takes as it is.
        room: Bytes that a device has.
    """
    chosen: list[Suggestion] = []
    if peak(memory_items(estimate)) <= room:
        return
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
