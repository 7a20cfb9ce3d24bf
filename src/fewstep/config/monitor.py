"""The sections of a recipe about what a run saves, shows and measures of itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fewstep.config.data import PromptSource
from fewstep.config.secrets import SecretAddress
from fewstep.config.strict import Amount, Count, Few, Guidance, Name, PlugIn, Section


class CheckpointRecipe(Section):
    """When to save, and what to keep."""

    every: Count = 100
    """Iterations between checkpoints; there is always one at the end."""
    keep_last: Count = 2
    """Number of the newest checkpoints to keep."""
    keep_best: Amount = 1
    """Number of checkpoints to keep for their preview score."""
    asynchronous: bool | None = None
    """Go on training while a checkpoint is written, at the price of a copy of the state in the
    computer's memory; null does so if there are several processes."""


class TeacherSamplingRecipe(Section):
    """How the teacher is sampled for comparison."""

    steps: Few | None = None
    """Euler steps; null is the pipeline's own default."""
    guidance: Guidance | None = None
    """Guidance scale; null is the pipeline's own default."""


class PreviewRecipe(Section):
    """Pictures of fixed prompts with fixed noise, beside the teacher's."""

    every: Count = 100
    """Iterations between previews; there is always one at the end."""
    prompts: PromptSource | None = None
    """A file with prompts, or a list of them; null takes the first training prompts."""
    count: Few = 8
    """Number of prompts that are sampled and scored; the picture shows the first 8."""
    steps: Annotated[tuple[Few, ...], Field(min_length=1, max_length=16)] = (4,)
    """Numbers of evaluations that the student is shown at; the pictures of the first are scored."""
    teacher: TeacherSamplingRecipe = TeacherSamplingRecipe()
    score: Name = "drift"
    """Name of the score of a preview, higher is better, which decides the `best` checkpoint.
    `drift` compares colour statistics with the teacher's; installed packages can add others."""


class HealthRecipe(Section):
    """Measurements of a few fixed samples that say whether training is sound."""

    every: Count = 25
    """Iterations between measurements."""
    count: Few = 8
    """Number of samples, made from the first prompts of the preview."""
    sigmas: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=64)
    ] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Noise levels at which the fake teacher's and the teacher's denoising loss are compared."""


class LogRecipe(Section):
    """Where measurements go besides metrics.jsonl, which is always written."""

    every: Count = 1
    """Iterations between two lines of metrics.jsonl; the sinks get the same."""
    sinks: tuple[PlugIn, ...] = ()
    """Where else they go: `tensorboard`, experiment trackers such as `wandb`, or sinks of installed
    packages; a name, or a mapping of a name and the sink's settings. A text such as `$MY_KEY` is
    taken from the environment; secrets are refused here."""
    notify: SecretAddress | None = Field(default=None, repr=False)
    """Where a message goes when the run has finished, failed or was stopped: an https address that
    takes JSON by POST, or `$NAME` of a variable that holds one. Copies of the recipe have `***`."""
