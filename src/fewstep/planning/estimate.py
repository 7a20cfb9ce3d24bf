"""What a recipe will take on given accelerators: memory, time and money, before any is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fewstep import models, objectives
from fewstep.config import Recipe
from fewstep.planning.dry_run import Table, build_objectives, gb, millions
from fewstep.planning.evaluations import Evaluations, count_evaluations
from fewstep.planning.gpus import Gpu, find_gpu
from fewstep.planning.memory import Item, peak
from fewstep.planning.parameters import Parameters, count_parameters
from fewstep.planning.variants import Change, Estimate
from fewstep.utils.errors import FewstepError

UTILISATION = 0.4
"""Share of an accelerator's matrix peak that training is assumed to reach, unless told."""


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
                (setting, *((gb(each.bytes), each.fits, each.price) if last else ("", "", "")))
                for each in self.changes
                for setting, last in _marked(each.settings)
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
        told = f"{share}{', assumed' * self.assumed}; no previews, no evaluation"
        cost = ("cost", "-", "give --price, of one device and hour")
        if self.cost is not None:
            cost = ("cost", f"{self.cost:.0f}", f"{self.price:g} x {self.gpus} x hours")
        return [("hours", f"{self.hours:.3g}", told), cost]


def _marked(settings: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Settings, a line each, and whether it is the last one."""
    return ((each, each is settings[-1]) for each in settings)


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
    backbone = models.load_meta(wanted.path, force=wanted.force, **wanted.options)
    objectives.refuse_unsupported(found, backbone.guidance, backbone.name)
    size = recipe.resolution
    backbone.effective_shift(recipe.grid.shift, size.height, size.width)  # refused as the run is
    _refuse_uneven(recipe, gpus)
    estimate = Estimate(backbone, found, gpus, cuda)
    seen, items = estimate.trace(recipe), tuple(estimate.memory(recipe))
    evaluations = count_evaluations(recipe, found, gpus)
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


def _recomputes(recipe: Recipe) -> bool:
    return bool(recipe.student.gradient_checkpointing)


def _refuse_uneven(recipe: Recipe, gpus: int) -> None:
    size = recipe.data.batch_size
    if size % gpus:
        raise FewstepError(
            f"data.batch_size: {size} samples cannot be shared evenly by {gpus} devices; "
            f"take a multiple of {gpus}, or other --gpus",
            code="out-of-range",
        )
