"""What a recipe would train, call, hold in memory and write, worked out without weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewstep.config import Recipe, missing_files
from fewstep.core.schedules import RandomGrid, few_step_sigmas, with_shift
from fewstep.planning.counts import Evaluations, Parameters
from fewstep.planning.disk import File, checkpoint_groups, checkpoints_kept, files_of, while_written
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import (
    ENCODING,
    HOST,
    PREVIEWS,
    TRAINING,
    Item,
    by_moment,
    memory_items,
    peak,
    sampling_items,
)
from fewstep.utils.tables import Table, text_tables

STEPS = 4
WIDTH = 80
"""Characters of a line of the tables."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a recipe comes to. As a string: readable tables.

    Attributes:
        model: What the recipe distils.
        family: The model family.
        parameters: How many there are, and are trained.
        evaluations: Network evaluations of an iteration, per sample.
        memory: Item by item, on one device.
        sampling: The same, of drawing a picture from the finished student.
        checkpoint: Bytes of each file of a checkpoint.
        checkpoints: Most of them that exist at once.
        notes: What should be known of the grid, a line each.
    """

    model: str
    family: str
    parameters: Parameters
    evaluations: Evaluations
    memory: tuple[Item, ...]
    sampling: tuple[Item, ...]
    checkpoint: dict[str, int]
    checkpoints: int
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Memory at the fullest moment, while training or while prompts are encoded ahead."""
        return peak(self.memory)

    def __str__(self) -> str:
        return text_tables(self.tables(), WIDTH)

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        content = asdict(self)
        content["evaluations"]["total"] = self.evaluations.total
        return content

    def tables(self) -> list[Table]:
        """Title, columns and rows of each table that people are shown."""
        raise NotImplementedError

    def memory_tables(self, verdict: str) -> list[Table]:
        """What is on one device while training, the other moments, and what is on the disk.

        Args:
            verdict: What is said of the fullest moment.
        """
        rows = [(i.name, gb(i.size), i.made_of) for i in self.memory if i.in_training]
        sizes, drawing = by_moment(self.memory), by_moment(self.sampling)
        moments = [(_MOMENTS[m], gb(sizes[m]), self._beside(m)) for m in _MOMENTS if m in sizes]
        after = ", ".join(f"{moment} {gb(size)}" for moment, size in drawing.items())
        moments += [
            ("peak of the run", gb(self.peak_bytes), verdict),
            ("sampling, afterwards", gb(peak(self.sampling)), after),
        ]
        whole, kept = sum(self.checkpoint.values()), self.checkpoints
        made_of = ", ".join(f"{name} {gb(size)}" for name, size in self.checkpoint.items())
        files = [
            ("a checkpoint", gb(whole), made_of),
            ("all that are kept", gb(kept * whole), f"{kept}: the newest and the best"),
            ("at most", gb((kept + 1) * whole), "while one more is written"),
        ]
        return [
            ("", ("memory on one device while training", "GB", "made of"), rows),
            ("", ("memory on one device", "GB", "made of"), moments),
            ("", ("checkpoints on the disk", "GB", "made of"), files),
        ]

    def _beside(self, moment: str) -> str:
        """What there is at a moment and not while training."""
        if moment == TRAINING:
            return "as above"
        other = [i for i in self.memory if moment in i.moments and not i.in_training]
        made_of = ", ".join(f"{item.name} {gb(item.size)}" for item in other)
        return made_of + "; no gradients" * (moment == PREVIEWS)


_MOMENTS = {
    ENCODING: "encoding prompts ahead",
    TRAINING: "training",
    PREVIEWS: "drawing previews",
    HOST: "beside it, on the host",
}


@dataclass(frozen=True, kw_only=True)
class DryRun(Forecast):
    """What a recipe would train, call, hold in memory and write.

    Attributes:
        blocks: Repeated blocks of its network.
        few_step: The student's sigmas for four steps, after the model's shift.
        anchors: Highest and lowest sigma that training grids can have after their first, after the
            model's shift; None where they have only one.
        steps: Fewest and most steps of the training grids.
        run_evaluations: Network evaluations of a whole run, all samples.
        files: That the run would write.
        missing: Files that the recipe names and that do not exist, by key.
    """

    blocks: int
    few_step: tuple[float, ...]
    anchors: tuple[float, float] | None
    steps: tuple[int, int]
    run_evaluations: int
    files: tuple[File, ...]
    missing: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        disk = sum(file.size or 0 for file in self.files)
        return super().as_json() | {"training_bytes": self.peak_bytes, "disk_bytes": disk}

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
        files = [(f.path, f.count, None if f.size is None else gb(f.size)) for f in self.files]
        title = f"{self.model} ({self.family}, {self.blocks} blocks)"
        return [
            (title, ("parameters", "millions"), parameters),
            ("", ("grids after the model's shift", "sigmas"), grids),
            ("", ("evaluations an iteration, per sample", "on average"), counts),
            *self.memory_tables("estimate"),
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
    estimate = Estimate.load(recipe)
    sizes, evaluations, backbone = estimate.parameters, estimate.evaluations, estimate.backbone
    grid, shift = recipe.grid, estimate.algorithm.shift
    if isinstance(grid, RandomGrid):
        base, steps = [1.0, grid.high, grid.low], (grid.min_steps, grid.max_steps)
    else:
        base, steps = list(grid.sigmas), (len(grid.sigmas), len(grid.sigmas))
    _, *later = shift(torch.tensor(base)).tolist()
    samples = recipe.train.steps * recipe.data.batch_size
    return DryRun(
        model=recipe.model.path,
        family=backbone.name,
        blocks=len(backbone.blocks(backbone.net)),
        parameters=sizes,
        few_step=tuple(with_shift(torch.tensor(few_step_sigmas(STEPS)), shift).tolist()),
        anchors=(later[0], later[-1]) if later and steps[1] > 1 else None,
        steps=steps,
        evaluations=evaluations,
        run_evaluations=round(samples * evaluations.total),
        memory=(*memory_items(estimate), while_written(estimate)) if walk else (),
        sampling=tuple(sampling_items(estimate) if walk else ()),
        checkpoint=checkpoint_groups(estimate),
        checkpoints=checkpoints_kept(recipe),
        files=tuple(files_of(estimate)),
        missing=missing_files(recipe),
        notes=estimate.notes,
    )


def gb(size: int) -> str:
    """Bytes in 10^9, with as many digits as mean something."""
    value = size / 1e9
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def millions(count: int) -> str:
    """A number of parameters in 10^6."""
    value = count / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
