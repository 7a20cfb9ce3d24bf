"""What a recipe would train, call, hold in memory and write, worked out without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewstep import models, objectives
from fewstep.config import Recipe, missing_files
from fewstep.core.schedules import RandomGrid, few_step_sigmas, with_shift
from fewstep.models.base import Backbone
from fewstep.objectives import Objective
from fewstep.planning.dummy_conditioning import dummy_conditioning
from fewstep.planning.evaluations import Evaluations
from fewstep.planning.files import File, files_of
from fewstep.planning.memory import Item, peak
from fewstep.planning.parameters import Parameters
from fewstep.planning.suggestions import Estimate
from fewstep.utils.tables import Table, text_tables

STEPS = 4
WIDTH = 80
"""Characters of a line of the tables."""


@dataclass(frozen=True)
class DryRun:
    """What a recipe comes to. As a string: readable tables.

    Attributes:
        model: What the recipe distils.
        family: The model family.
        blocks: Repeated blocks of its network.
        parameters: How many there are, and are trained.
        few_step: The student's sigmas for four steps, after the model's shift.
        anchors: Highest and lowest sigma that training grids can have after their first, after the
            model's shift; None where they have only one.
        steps: Fewest and most steps of the training grids.
        evaluations: Network evaluations of an iteration, per sample.
        run_evaluations: Network evaluations of a whole run, all samples.
        memory: Item by item.
        files: That the run would write.
        missing: Files that the recipe names and that do not exist, by key.
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

    def __str__(self) -> str:
        return text_tables(self.tables(), WIDTH)

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        content = asdict(self) | {"training_bytes": self.training_bytes}
        content["evaluations"]["total"] = self.evaluations.total
        return content | {"disk_bytes": self.disk_bytes}

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table that people are shown."""
        sizes, evaluations = self.parameters, self.evaluations
        ranges = f"{self.few_step[0]:.4f}"
        if self.anchors:
            ranges += f", then {self.anchors[0]:.4f} .. {self.anchors[1]:.4f}"
        parameters = [
            ("network", millions(sizes.network)),
            ("trained, in each of student and fake teacher", millions(sizes.trained)),
            ("text encoders", millions(sizes.encoders)),
            ("VAE", millions(sizes.vae)),
        ]
        grids = [
            (f"student, {STEPS} steps", ", ".join(f"{sigma:.4f}" for sigma in self.few_step)),
            (f"training, {self.steps[0]} to {self.steps[1]} steps", ranges),
        ]
        counts = [
            ("simulation to the anchor", evaluations.simulation),
            ("fake teacher's training", evaluations.fake_teacher),
            ("student's objectives: student", evaluations.student),
            ("student's objectives: teachers", evaluations.teachers),
            *([("networks of objectives", evaluations.networks)] if evaluations.networks else []),
            ("all", evaluations.total),
            ("of them backward too", evaluations.backward),
            ("the whole run, all samples", self.run_evaluations),
        ]
        memory = [
            *memory_rows(self.memory),
            ("while training", gb(self.training_bytes), "estimate"),
        ]
        files = [(f.path, f.count, None if f.size is None else gb(f.size)) for f in self.files]
        title = f"{self.model} ({self.family}, {self.blocks} blocks)"
        return [
            (title, ("parameters", "millions"), parameters),
            ("", ("grids after the model's shift", "sigmas"), grids),
            ("", ("evaluations an iteration, per sample", "on average"), counts),
            ("", ("memory on one device", "GB", "made of"), memory),
            ("", ("files that would be written", "how many", "GB"), files),
        ]


def dry_run(recipe: Recipe, *, walk: bool = True) -> DryRun:
    """Work through a recipe with the model's configurations alone; writes nothing.

    Args:
        recipe: What would be run.
        walk: Run the network on the meta device to count its memory, as `plan` does, which takes
            seconds; else `memory` is empty.

    Raises:
        FewstepError: The run would be refused for the same reason.
    """
    backbone, built = load_checked(recipe)
    estimate = Estimate(backbone, built)
    sizes = estimate.parameters(recipe)
    evaluations = estimate.evaluations(recipe)
    few_step, anchors, steps = grid_ranges(recipe, backbone)
    samples = recipe.train.steps * recipe.data.batch_size
    return DryRun(
        model=recipe.model.path,
        family=backbone.name,
        blocks=len(backbone.blocks(backbone.net)),
        parameters=sizes,
        few_step=few_step,
        anchors=anchors,
        steps=steps,
        evaluations=evaluations,
        run_evaluations=round(samples * evaluations.total),
        memory=tuple(estimate.memory(recipe) if walk else ()),
        files=tuple(files_of(recipe, sizes)),
        missing=missing_files(recipe),
    )


def load_checked(recipe: Recipe) -> tuple[Backbone, list[Objective]]:
    """A recipe's model on the meta device, and its objectives.

    Raises:
        FewstepError: A run would be refused, since they do not exist or do not go together.
    """
    built = objectives.build_all(recipe)
    model, size = recipe.model, recipe.resolution
    backbone = models.load_meta(model.path, force=model.force, **model.options)
    takes_guidance = "guidance" in dummy_conditioning(backbone, 1, torch.float32).tensors
    guidance = "embedded" if takes_guidance else "cfg"
    objectives.refuse_unsupported(built, guidance, backbone.name)
    backbone.effective_shift(recipe.grid.shift, size.height, size.width)
    return backbone, built


def grid_ranges(
    recipe: Recipe, backbone: Backbone
) -> tuple[tuple[float, ...], tuple[float, float] | None, tuple[int, int]]:
    """Few-step sigmas, range of the training grids' later sigmas, fewest and most steps."""
    grid, size = recipe.grid, recipe.resolution
    shift = backbone.effective_shift(grid.shift, size.height, size.width)
    few_step = with_shift(torch.tensor(few_step_sigmas(STEPS)), shift).tolist()
    if isinstance(grid, RandomGrid):
        base, steps = [1.0, grid.high, grid.low], (grid.min_steps, grid.max_steps)
    else:
        base, steps = list(grid.sigmas), (len(grid.sigmas), len(grid.sigmas))
    _, *later = shift(torch.tensor(base)).tolist()
    return tuple(few_step), (later[0], later[-1]) if later and steps[1] > 1 else None, steps


def memory_rows(items: Sequence[Item]) -> list[tuple[str, str, str]]:
    """Rows of the table of memory."""
    return [(i.name, gb(i.size) if i.in_training else "-", i.made_of) for i in items]


def gb(size: int) -> str:
    """Bytes in 10^9, with as many digits as mean something."""
    value = size / 1e9
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def millions(count: int) -> str:
    """A number of parameters in 10^6."""
    value = count / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
