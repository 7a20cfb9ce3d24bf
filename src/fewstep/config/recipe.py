"""The sections of a recipe, as frozen records.

Defaults are the published settings of CDM wherever there are any (arXiv 2605.06376).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from fewstep.config.criteria import CriterionRecipe
from fewstep.config.data import DataRecipe
from fewstep.config.evaluate import EvaluateRecipe
from fewstep.config.memory import MemoryRecipe
from fewstep.config.optimizer import FakeTeacherOptimizerRecipe, StudentOptimizerRecipe
from fewstep.config.parallel import ParallelRecipe
from fewstep.config.strict import Amount, Beta, Count, Named, Positive, Section, Unit
from fewstep.core.schedules import Grid, Law, RandomGrid, Uniform


class ModelRecipe(Section):
    """The pretrained model to distil.

    Attributes:
        path: Folder or hub id of a diffusers pipeline, or ``package://package/folder``.
        options: What the backbone's loader takes, such as ``max_sequence_length``.
        dtype: Precision of frozen weights and inside the networks; what is trained is float32.
        force: Take a teacher that is distilled already.
    """

    path: str
    options: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    force: bool = False


class ResolutionRecipe(Section):
    """Size of the images in pixels."""

    height: Count
    width: Count


class ObjectiveRecipe(Named):
    """One term of the student's loss, by name; further keys are that objective's own settings."""


def _as_odds(value: Any) -> Any:
    """A name alone is chosen always."""
    if isinstance(value, str):
        return {value: 1.0}
    if not value or not isinstance(value, dict):
        raise ValueError(f"must be a name, or odds such as {{x0: 1, final: 2}}, not {value!r}")
    return value


TargetName: TypeAlias = Literal["x0", "final"]
Target: TypeAlias = Annotated[dict[TargetName, Positive], BeforeValidator(_as_odds)]
"""In a recipe a name, or odds of both such as ``{x0: 1, final: 2}``."""


class FakeTeacherRecipe(Section):
    """How the fake teacher follows the student.

    Attributes:
        law: Noise levels it is trained at.
        target: What it learns to denoise: the anchor's x0, or the simulation's end (``final``).
            Odds such as ``{x0: 1, final: 2}`` give each on a share of the samples.
        updates: Updates per iteration, each with fresh noise.
        ida_rate: Share of the student mixed into its weights after each update; 0 is off.
        optimizer: Its optimizer.
    """

    law: Law = Uniform()
    target: Target = {"x0": 1.0}  # noqa: RUF012 - pydantic copies it
    updates: Count = 1
    ida_rate: Unit = 0.001
    optimizer: FakeTeacherOptimizerRecipe = FakeTeacherOptimizerRecipe()


class LoraRecipe(Section):
    """Low-rank adapters.

    Attributes:
        rank: Rank of each adapter.
        alpha: Scale times rank; None is the rank, so that the exported adapter is right at scale 1.
        targets: Names of the linear layers to adapt, or their endings; None lets the model choose.
    """

    rank: Count = 32
    alpha: Positive | None = None
    targets: tuple[str, ...] | None = None


class StudentRecipe(Section):
    """What is trained, and how often.

    Attributes:
        mode: ``full``: three whole networks. ``lora``: one network with two adapters.
        lora: The adapters, for mode ``lora``.
        optimizer: The student's optimizer.
        every: The student moves on every so many iterations; the fake teacher moves on each.
        gradient_checkpointing: Recompute activations of both trained networks: slower, but small.
            A number n recomputes those of every n-th block only.
        compile: Compile the networks' repeated blocks: slow to start, then faster.
    """

    mode: Literal["full", "lora"] = "full"
    lora: LoraRecipe | None = None
    optimizer: StudentOptimizerRecipe = StudentOptimizerRecipe()
    every: Count = 2
    gradient_checkpointing: bool | Count = False
    compile: bool = False

    @model_validator(mode="after")
    def _lora_fits_mode(self) -> Self:
        if self.mode == "full" and self.lora is not None:
            raise ValueError("lora is given but mode is 'full': set mode to 'lora' or remove lora")
        return self


class EmaRecipe(Section):
    """Running mean of the student's weights, decay min((1 + n) / (10 + n), max_decay)."""

    max_decay: Beta = 0.999


class TrainRecipe(Section):
    """The run.

    Attributes:
        steps: Iterations; the student moves on every `student.every`-th of them.
        warmup: Updates over which each learning rate rises from 0; constant afterwards.
        cooldown: Share of the iterations, at the end, over which each falls to 0.
        seed: All random values are functions of it.
        device: Where to run; ``auto`` takes an accelerator if there is one.
        deterministic: Only algorithms that repeat bit for bit; exact resume needs it on a GPU.
        step: ``fused`` asks no network twice for the same; ``plain`` works literally as published.
        batch_teachers: Each teacher answers a student update's questions in one batch; off, the
            fused step needs less memory.
    """

    steps: Count
    warmup: Amount = 100
    cooldown: Unit = 0.0
    seed: Amount = 0
    device: str = "auto"
    deterministic: bool = True
    step: Literal["plain", "fused"] = "fused"
    batch_teachers: bool = True


class CheckpointRecipe(Section):
    """When to save, and what to keep: the newest ones, and those with the best preview score.

    Attributes:
        asynchronous: Go on training while a checkpoint is written, for a copy of the state in
            memory; None does so where there are several processes.
    """

    every: Count = 100
    keep_last: Count = 2
    keep_best: Amount = 1
    asynchronous: bool | None = None


class TeacherSamplingRecipe(Section):
    """How the teacher is sampled for comparison; None is the model's own default."""

    steps: Count | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None


class PreviewRecipe(Section):
    """Pictures of fixed prompts with fixed noise, beside the teacher's.

    Attributes:
        every: Iterations between previews; there is always one at the end.
        prompts: The prompts, written out.
        path: Or a file with them. Without either the first training prompts are taken.
        count: How many prompts are sampled and scored.
        rows: How many of them the picture shows.
        steps: Evaluations the student is shown at; the first one is scored.
        teacher: How the teacher's half is sampled.
        seed: Image i starts from noise seeded with seed + i.
        score: Name of what rates a preview, higher is better, such as ``drift``.
    """

    every: Count = 100
    prompts: tuple[str, ...] | None = None
    path: str | None = None
    count: Count = 8
    rows: Count = 8
    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (4,)
    teacher: TeacherSamplingRecipe = TeacherSamplingRecipe()
    seed: Amount = 0
    score: str = "drift"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.prompts is not None and self.path is not None:
            raise ValueError("prompts and path are both given: remove one")
        return self


class HealthRecipe(Section):
    """Measurements of a few fixed samples that say whether training is sound.

    Attributes:
        every: Iterations between measurements.
        count: Samples, made from the preview's prompts.
        sigmas: Noise levels at which the fake teacher's and the teacher's loss are compared.
    """

    every: Count = 25
    count: Count = 8
    sigmas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def _as_sink(value: Any) -> Any:
    """A name alone is a sink without settings."""
    return {"name": value} if isinstance(value, str) else value


SinkRecipe: TypeAlias = Annotated[Named, BeforeValidator(_as_sink)]
"""In a recipe a name such as ``tensorboard``, or ``{name: wandb, project: my-project}``."""


class LogRecipe(Section):
    """Where measurements go besides metrics.jsonl, which is always written.

    Attributes:
        every: Iterations between two lines of metrics.jsonl; the sinks get the same.
        sinks: TensorBoard, experiment trackers such as wandb, or those of installed packages.
    """

    every: Count = 1
    sinks: tuple[SinkRecipe, ...] = ()


class Recipe(Section):
    """Everything a run depends on."""

    model: ModelRecipe
    data: DataRecipe
    resolution: ResolutionRecipe
    grid: Grid = RandomGrid()
    objectives: Annotated[tuple[ObjectiveRecipe, ...], Field(min_length=1)]
    fake_teacher: FakeTeacherRecipe = FakeTeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    ema: EmaRecipe | None = EmaRecipe()
    train: TrainRecipe
    parallel: ParallelRecipe = ParallelRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    preview: PreviewRecipe = PreviewRecipe()
    health: HealthRecipe = HealthRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    criteria: tuple[CriterionRecipe, ...] = ()
    # What the model card's header says, such as license and base_model.
    card: dict[str, str] = Field(default_factory=dict)
    log: LogRecipe = LogRecipe()
    memory: MemoryRecipe = MemoryRecipe()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for section, members in (
            ("objectives", self.objectives),
            ("criteria", self.criteria),
            ("log.sinks", self.log.sinks),
        ):
            names = [member.name for member in members]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{section} lists {name!r} twice")
        optimizers = [each.optimizer.name for each in (self.student, self.fake_teacher)]
        again = self.student.gradient_checkpointing
        if misfit := self.memory.misfit(self.student.mode, self.model.dtype, again, optimizers):
            raise ValueError(misfit)
        if self.train.steps < self.student.every:
            raise ValueError(
                f"train.steps ({self.train.steps}) is below student.every ({self.student.every}): "
                "the student would never move"
            )
        return self
