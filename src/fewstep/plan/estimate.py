"""What a recipe will take on given accelerators: memory, time and money, before any is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fewstep import backbones, objectives
from fewstep.backbones.base import Backbone
from fewstep.config import ConfigError, Recipe, parse_recipe
from fewstep.errors import FewstepError
from fewstep.objectives import Objective
from fewstep.plan.dry_run import Table, build_objectives, gb, millions
from fewstep.plan.evaluations import Evaluations, count_evaluations
from fewstep.plan.gpus import Gpu, find_gpu
from fewstep.plan.memory import Item
from fewstep.plan.parameters import Parameters, count_parameters
from fewstep.plan.peak import held, micro_batch, questions, working
from fewstep.plan.trace import Trace, trace

UTILISATION = 0.4
"""Share of an accelerator's matrix peak that training is assumed to reach, unless told."""


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


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on given accelerators.

    Attributes:
        model: What the recipe distils.
        family: The backbone that understands it.
        gpu: Kind of accelerator.
        gpus: How many.
        parameters: How many there are, and are trained.
        evaluations: Of the networks, an iteration, per sample.
        forward_flops: Of one forward pass of one sample.
        iteration_flops: Of one iteration, all samples; a student update is every k-th.
        run_flops: Of the run.
        memory: Item by item, on one device, at the fullest moment.
        changes: What would make it fit, if it does not; cumulative.
        utilisation: Share of the matrix peak that is assumed.
        assumed: Whether nobody told it.
        hours: That the run takes.
        price: Of one accelerator and hour; None: not told.
    """

    model: str
    family: str
    gpu: Gpu
    gpus: int
    parameters: Parameters
    evaluations: Evaluations
    forward_flops: float
    iteration_flops: float
    run_flops: float
    memory: tuple[Item, ...]
    changes: tuple[Change, ...]
    utilisation: float
    assumed: bool
    hours: float
    price: float | None

    @property
    def peak_bytes(self) -> int:
        """Most memory at once, on one device."""
        return peak(self.memory)

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.peak_bytes <= self.gpu.room

    @property
    def cost(self) -> float | None:
        """Of the run, in the price's currency."""
        return None if self.price is None else self.price * self.hours * self.gpus

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        content = asdict(self) | {"peak_bytes": self.peak_bytes, "fits": self.fits}
        content["evaluations"]["total"] = self.evaluations.total
        return content | {"room_bytes": self.gpu.room, "cost": self.cost, "measured": False}

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table that people are shown."""
        sizes, where = self.parameters, f"{self.gpus} x {self.gpu.name}"
        rows = [(i.name, gb(i.size) if i.counts else "-", i.made_of) for i in self.memory]
        verdict = "fits" if self.fits else "does not fit"
        room = f"{verdict} into {gb(self.gpu.room)}: {self.gpu.memory} less 8 % for the libraries"
        tables: list[Table] = [
            (
                f"{self.model} ({self.family}) on {where}",
                ("what", "how much"),
                [
                    ("parameters", f"{millions(sizes.network)} million"),
                    ("trained, in each of two roles", f"{millions(sizes.trained)} million"),
                    ("a forward pass of one sample", f"{self.forward_flops / 1e12:.2f} TFLOP"),
                    ("evaluations an iteration, per sample", self.evaluations.total),
                    ("of them backward too", self.evaluations.backward),
                    ("an iteration, all samples", f"{self.iteration_flops / 1e15:.3g} PFLOP"),
                    ("the run", f"{self.run_flops / 1e18:.3g} EFLOP"),
                ],
            ),
            ("", ("memory on one device", "GB", "made of"), [*rows, ("peak", self._peak, room)]),
            ("", ("time", "estimate", "made of"), self._time()),
        ]
        if self.changes:
            rows = [
                (" ".join(each.settings), gb(each.bytes), each.fits, each.price)
                for each in self.changes
            ]
            tables.append(
                ("settings that take less, each on top of those above it",
                 ("--set", "peak GB", "fits", "costs"), rows)
            )  # fmt: skip
        return tables

    @property
    def _peak(self) -> str:
        return gb(self.peak_bytes)

    def _time(self) -> list[tuple[object, ...]]:
        share = f"{self.utilisation:g} of {self.gpu.tflops:g} TFLOP/s"
        told = f"{share}{', assumed' * self.assumed}; without previews, evaluation, encoding"
        cost = ("cost", "-", "give --price, of one device and hour")
        if self.cost is not None:
            cost = ("cost", f"{self.cost:.0f}", f"{self.price:g} x {self.gpus} x hours")
        return [("hours", f"{self.hours:.3g}", told), cost]


def plan(
    recipe: Recipe,
    gpu: str,
    gpus: int = 1,
    *,
    utilisation: float | None = None,
    price: float | None = None,
    cuda: bool = True,
) -> Plan:
    """Work a recipe out with the model's configurations alone; writes nothing.

    Raises:
        FewstepError: Such an accelerator is not known, or the run would be refused.
    """
    kind, found = find_gpu(gpu), build_objectives(recipe)
    wanted = recipe.model
    backbone = backbones.outline(wanted.path, force=wanted.force, **wanted.options)
    objectives.refuse_misfits(found, backbone.guidance, backbone.name)
    _refuse_uneven(recipe, gpus)
    estimate = Estimate(backbone, found, gpus, cuda)
    seen, items = estimate.trace(recipe), tuple(estimate.memory(recipe))
    evaluations = count_evaluations(recipe, found)
    again = 1 / int(recipe.student.gradient_checkpointing or 0) if _recomputes(recipe) else 0
    passes = evaluations.total + evaluations.backward * (2 + again)
    iteration = passes * seen.flops * recipe.data.batch_size
    run, share = iteration * recipe.train.steps, utilisation or UTILISATION
    fits = peak(items) <= kind.room
    return Plan(
        model=wanted.path,
        family=backbone.name,
        gpu=kind,
        gpus=gpus,
        parameters=count_parameters(backbone, recipe.student),
        evaluations=evaluations,
        forward_flops=seen.flops,
        iteration_flops=iteration,
        run_flops=run,
        memory=items,
        changes=() if fits else tuple(estimate.changes(recipe, kind)),
        utilisation=share,
        assumed=utilisation is None,
        hours=run / (gpus * kind.tflops * 1e12 * share) / 3600,
        price=price,
    )


def peak(items: tuple[Item, ...] | list[Item]) -> int:
    """Bytes of all that is there while training."""
    return sum(item.size for item in items if item.counts)


class Estimate:
    """Memory of variants of a recipe; what needs no new walk through the network takes none."""

    def __init__(
        self, backbone: Backbone, objectives: list[Objective], gpus: int, cuda: bool
    ) -> None:
        self._backbone, self._objectives = backbone, objectives
        self._gpus, self._cuda = gpus, cuda
        self._traces: dict[tuple[Any, ...], Trace] = {}

    def trace(self, recipe: Recipe) -> Trace:
        """A call of the recipe's student."""
        batch, asked = micro_batch(recipe, self._gpus), questions(recipe, self._objectives)
        student = recipe.student.model_dump_json(exclude={"optimizer"})
        dtypes = recipe.model.dtype, recipe.memory.trained_dtype
        key = (batch, asked, student, dtypes, recipe.data.accumulate > 1)
        if key not in self._traces:
            self._traces[key] = trace(
                recipe, self._backbone, batch=batch, questions=asked, cuda=self._cuda
            )
        return self._traces[key]

    def memory(self, recipe: Recipe) -> list[Item]:
        """Item by item, at the fullest moment, on one device."""
        seen = self.trace(recipe)
        work = working(recipe, self._objectives, seen)
        sizes = count_parameters(self._backbone, recipe.student)
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
    share = data.batch_size // gpus
    if data.accumulate < share:
        yield {"data.accumulate": share}, "one sample at a time"
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


def _recomputes(recipe: Recipe) -> bool:
    return bool(recipe.student.gradient_checkpointing)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()


def _refuse_uneven(recipe: Recipe, gpus: int) -> None:
    size, parts = recipe.data.batch_size, recipe.data.accumulate
    if size % gpus:
        raise FewstepError(
            f"data.batch_size: {size} samples cannot be shared evenly by {gpus} devices; "
            f"take a multiple of {gpus}, or other --gpus"
        )
    if size // gpus < parts:
        raise FewstepError(
            f"data.accumulate: {parts} parts of {size // gpus} samples a device; take fewer: "
            f"--set data.accumulate={size // gpus}"
        )
