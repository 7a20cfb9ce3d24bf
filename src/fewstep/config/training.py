"""The sections of a recipe about what is trained, by what rule and for how long.

Defaults are the published settings of CDM wherever there are any (arXiv 2605.06376).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from fewstep.config.optimizer import FakeTeacherOptimizerRecipe, StudentOptimizerRecipe
from fewstep.config.strict import (
    Amount,
    Beta,
    Count,
    Few,
    Name,
    Named,
    Positive,
    Section,
    Seed,
    Size,
    Unit,
)
from fewstep.core.schedules import Law, Uniform


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
Target: TypeAlias = Annotated[
    dict[TargetName, Positive],
    BeforeValidator(_as_odds, json_schema_input_type=TargetName | dict[TargetName, Positive]),
]
"""In a recipe a name, or odds of both such as ``{x0: 1, final: 2}``."""


class FakeTeacherRecipe(Section):
    """How the fake teacher follows the student."""

    law: Law = Uniform()
    """Law of the noise levels that it is trained at, Eq. 9."""
    target: Target = {"x0": 1.0}  # noqa: RUF012 - pydantic copies it
    """What it learns to denoise: `x0`, the clean latent that the student predicts at the anchor, or
    `final`, the end of the simulation. Odds such as `{x0: 1, final: 2}` give each on a share of
    the samples, which improved distances and diversity on the embedded model."""
    updates: Few = 1
    """Updates per iteration, each with fresh noise. More follow a fast student better and cost
    one forward and backward pass each."""
    ida_rate: Unit = 0.001
    """Share of the student's weights mixed into its own after each update, Eq. 17; 0 is off.
    Large guidance-distilled models need 0.02 to 0.03."""
    optimizer: FakeTeacherOptimizerRecipe = FakeTeacherOptimizerRecipe()


class LoraRecipe(Section):
    """Low-rank adapters, for mode `lora`."""

    rank: Size = 32
    """Rank of each adapter."""
    alpha: Positive | None = None
    """The adapter is multiplied by alpha / rank in training; null is the rank. Exported adapters
    are right at scale 1 in any case. For settings taken from other trainers."""
    targets: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Names of the linear layers to adapt, or their endings such as `attn.to_q`; null adapts all
    linear layers of the blocks but those of modulation and norms."""


class InitRecipe(Section):
    """What was trained before, as the student's start."""

    path: Name
    """A run, an export, a LoRA, or another model of the same sizes."""
    relative_to: Name | None = None
    """A second model: the student is the teacher plus the difference of the first to this one. In
    mode `lora` the difference of a whole model to its base is made adapters of the wanted rank."""
    raw: bool = False
    """Of a run: the weights as trained, where their running mean was kept as well."""


def _as_init(value: Any) -> Any:
    """A path alone is that and nothing else."""
    return {"path": value} if isinstance(value, str) else value


Init: TypeAlias = Annotated[
    InitRecipe, BeforeValidator(_as_init, json_schema_input_type=Name | InitRecipe)
]
"""In a recipe a path, or a mapping."""


class StudentRecipe(Section):
    """What is trained, and how often."""

    mode: Literal["full", "lora"] = "full"
    """`full` holds three whole networks; `lora` one frozen network with two adapters, in a fraction
    of the memory."""
    lora: LoraRecipe | None = None
    init: Init | None = None
    """Where the student starts; null: at the teacher. A path, or `{path, relative_to, raw}`: a run,
    an export, a LoRA or another model."""
    optimizer: StudentOptimizerRecipe = StudentOptimizerRecipe()
    every: Few = 2
    """The student is updated on every so many iterations; the fake teacher on each."""
    gradient_checkpointing: bool | Few = False
    """Recompute activations in the backward pass: less memory, about a third more time. A number n
    does so in every n-th block only. Needed by nearly all large models."""
    compile: bool = False
    """Compile the networks' repeated blocks: minutes to start, then faster on a GPU."""

    @model_validator(mode="after")
    def _lora_fits_mode(self) -> Self:
        if self.mode == "full" and self.lora is not None:
            raise ValueError("lora is given but mode is 'full': set mode to 'lora' or remove lora")
        return self


class EmaRecipe(Section):
    """Running mean of the student's weights, which is what is exported; null: none is kept."""

    max_decay: Beta = 0.999
    """Upper bound of the decay min((1 + n) / (10 + n), max_decay) after n updates; lower it for
    runs of a few hundred updates."""


class TrainRecipe(Section):
    """The run."""

    steps: Count
    """Iterations; the student is updated on every `student.every`-th of them."""
    warmup: Amount = 100
    """Updates over which each learning rate rises linearly from 0; constant afterwards."""
    cooldown: Unit = 0.0
    """Share of the iterations, at the end, over which each learning rate falls to 0. For short runs
    at high rates."""
    seed: Seed = 0
    """All random values are functions of it."""
    device: Name = "auto"
    """Where to run, such as `cuda:1` or `cpu`; `auto` takes an accelerator if there is one."""
    on_divergence: Literal["stop", "warn"] = "stop"
    """What to do once the student is past saving: `stop` ends the run; `warn` only says so. Figures
    that are merely out of bounds are said in either case, and mark checkpoints as unhealthy."""
    early_stop: Count | None = None
    """End the run after so many previews in a row that scored no better than the best one before;
    null: never. The best checkpoint is kept. For runs without a `cooldown`."""
    deterministic: bool = True
    """Use only algorithms that repeat bit for bit; exact resuming on a GPU needs it. Off, some GPU
    kernels are faster."""
    step: Literal["plain", "fused"] = "fused"
    """`fused` shares predictions between the terms of the loss; `plain` does every evaluation that
    Algorithm 1 names, for comparison."""
    simulate_batch: Count | None = None
    """Samples that are simulated together, without gradients, where `data.accumulate` splits the
    batch further; null: those of one part. Few large calls keep a GPU busier than many small ones,
    and take little memory. Equal up to rounding."""
    batch_teachers: bool = True
    """Each teacher answers all queries of a student's update in one batch. Off, they are answered
    one after the other, in less memory."""
