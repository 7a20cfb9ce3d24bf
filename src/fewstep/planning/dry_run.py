"""A recipe walked through without weights: what it would train, ask, hold and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewstep import models, objectives
from fewstep.config import ConfigError, Recipe, missing_files
from fewstep.core.schedules import RandomGrid, few_step_sigmas, with_shift
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.planning.evaluations import Evaluations, count_evaluations
from fewstep.planning.files import File, files_of
from fewstep.planning.memory import Item, peak
from fewstep.planning.parameters import Parameters, count_parameters
from fewstep.planning.variants import Estimate
from fewstep.utils.errors import FewstepError

STEPS = 4
Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]


@dataclass(frozen=True)
class DryRun:
    """What a recipe comes to.

    Attributes:
        model: What the recipe distils.
        family: The backbone that understands it.
        blocks: Repeated blocks of its network.
        parameters: How many there are, and are trained.
        few_step: Sigmas that the student is asked at in four steps, after the model's shift.
        anchors: Highest and lowest sigma that the training grids can have after their first, after
            the model's shift; None where they have only one.
        steps: Fewest and most steps of the training grids.
        evaluations: Of the networks, an iteration, per sample.
        run_evaluations: Of a whole run, all samples.
        memory: Item by item.
        files: That the run would write.
        missing: Files that the recipe names and that are not there, by key.
    """

    model: str
    family: str
    blocks: int
    parameters: Parameters
    few_step: tuple[float, ...]
    anchors: tuple[float, float] | None
    steps: tuple[int, int]
    evaluations: Evaluations
    run_evaluations: int
    memory: tuple[Item, ...]
    files: tuple[File, ...]
    missing: dict[str, str]

    @property
    def training_bytes(self) -> int:
        """Memory at the fullest moment, while training or while prompts are encoded ahead."""
        return peak(self.memory)

    @property
    def disk_bytes(self) -> int:
        """Size of the run folder."""
        return sum(file.size or 0 for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        content = asdict(self) | {"training_bytes": self.training_bytes}
        content["evaluations"]["total"] = self.evaluations.total
        return content | {"disk_bytes": self.disk_bytes}

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table that people are shown."""
        sizes, each = self.parameters, self.evaluations
        held = [(i.name, gb(i.size) if i.counts else "-", i.made_of) for i in self.memory]
        ranges = f"{self.few_step[0]:.4f}"
        if self.anchors:
            ranges += f", then {self.anchors[0]:.4f} .. {self.anchors[1]:.4f}"
        return [
            (
                f"{self.model} ({self.family}, {self.blocks} blocks)",
                ("parameters", "millions"),
                [
                    ("network", millions(sizes.network)),
                    ("trained, in each of student and fake teacher", millions(sizes.trained)),
                    ("text encoders", millions(sizes.encoders)),
                    ("VAE", millions(sizes.vae)),
                ],
            ),
            (
                "",
                ("grids after the model's shift", "sigmas"),
                [
                    (f"student, {STEPS} steps", ", ".join(f"{s:.4f}" for s in self.few_step)),
                    (f"training, {self.steps[0]} to {self.steps[1]} steps", ranges),
                ],
            ),
            (
                "",
                ("evaluations an iteration, per sample", "on average"),
                [
                    ("simulation to the anchor", each.simulation),
                    ("fake teacher's training", each.fake_teacher),
                    ("student's objectives: student", each.student),
                    ("student's objectives: teachers", each.teachers),
                    ("all", each.total),
                    ("of them backward too", each.backward),
                    ("the whole run, all samples", self.run_evaluations),
                ],
            ),
            (
                "",
                ("memory on one device", "GB", "made of"),
                [*held, ("while training", gb(self.training_bytes), "estimate")],
            ),
            (
                "",
                ("files that would be written", "how many", "GB"),
                [(f.path, f.count, None if f.size is None else gb(f.size)) for f in self.files],
            ),
        ]


def dry_run(recipe: Recipe, *, walk: bool = True) -> DryRun:
    """Work through a recipe with the model's configurations alone; writes nothing.

    Args:
        recipe: What would be run.
        walk: Walk through the network for its memory, as `fewstep plan` does, which takes seconds
            for a small model and a minute for a large one; else `memory` is empty.

    Raises:
        FewstepError: The run would be refused for the same reason.
    """
    found = build_objectives(recipe)
    wanted = recipe.model
    backbone = models.load_meta(wanted.path, force=wanted.force, **wanted.options)
    objectives.refuse_unsupported(found, backbone.guidance, backbone.name)
    sizes = count_parameters(backbone, recipe.student)
    evaluations = count_evaluations(recipe, found)
    few, anchors, steps = grids(recipe, backbone)
    samples = recipe.train.steps * recipe.data.batch_size
    memory = Estimate(backbone, found, 1, cuda=True).memory(recipe) if walk else []
    return DryRun(
        model=wanted.path,
        family=backbone.name,
        blocks=len(backbone.blocks(backbone.net)),
        parameters=sizes,
        few_step=few,
        anchors=anchors,
        steps=steps,
        evaluations=evaluations,
        run_evaluations=round(samples * evaluations.total),
        memory=tuple(memory),
        files=tuple(files_of(recipe, sizes)),
        missing=missing_files(recipe),
    )


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The recipe's objectives.

    Raises:
        ConfigError: One is unknown or has settings that do not fit; one line says which.
    """
    found = []
    for number, each in enumerate(recipe.objectives):
        try:
            found.append(objectives.build(each.name, **each.settings))
        except FewstepError as error:
            raise ConfigError(f"objectives.{number}: {error}") from error
    return found


def grids(
    recipe: Recipe, backbone: Backbone
) -> tuple[tuple[float, ...], tuple[float, float] | None, tuple[int, int]]:
    """Few-step sigmas, range of the training grids' later sigmas, fewest and most steps."""
    grid, size = recipe.grid, recipe.resolution
    shift = backbone.effective_shift(grid.shift, size.height, size.width)
    few = with_shift(torch.tensor(few_step_sigmas(STEPS)), shift).tolist()
    if isinstance(grid, RandomGrid):
        base, steps = [1.0, grid.high, grid.low], (grid.min_steps, grid.max_steps)
    else:
        base, steps = list(grid.sigmas), (len(grid.sigmas), len(grid.sigmas))
    _, *rest = shift(torch.tensor(base)).tolist()
    return tuple(few), (rest[0], rest[-1]) if rest and steps[1] > 1 else None, steps


def gb(size: int) -> str:
    """Bytes in 10^9, with as many digits as say something."""
    value = size / 1e9
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def millions(count: int) -> str:
    """A number of parameters in 10^6."""
    value = count / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
