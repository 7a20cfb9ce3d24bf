"""The evaluate section of a recipe: what is drawn after training, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.data import PromptSource
from fewstep.config.strict import Count, Few, Name, Named, PlugIn, Positive, Section, Seed, Size


class ConfigurationRecipe(Section):
    """Whose pictures are scored, and how they are drawn."""

    model: Literal["teacher", "student"]
    """Whose pictures."""
    steps: Few | None = None
    """Euler steps; null is the pipeline's own default."""
    guidance: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Guidance scale; 1 is off. Null is the pipeline's own default, and off for the student."""
    shift: Positive | None = None
    """Static shift of the grid, Eq. 12a; null is `grid.shift` for the student and the model's own
    for the teacher."""


class EvaluateRecipe(Section):
    """How the result is measured after training."""

    metrics: tuple[PlugIn, ...] = (
        Named(name="frechet"),
        Named(name="coverage"),
        Named(name="diversity"),
    )
    """Metrics by name, or mappings of a name and the metric's own settings, such as
    `{name: clip_score, model: FOLDER}`."""
    prompts: PromptSource | None = None
    """A file with prompts that training did not see, or a list of them. Needed to evaluate."""
    count: Count = 1000
    """Number of these prompts; each gets one picture."""
    repeats: tuple[Count, Annotated[int, Field(ge=2, le=1000)]] = (48, 8)
    """Number of prompts with several pictures, for diversity, and number of pictures of each."""
    configurations: Annotated[tuple[ConfigurationRecipe, ...], Field(min_length=1)] = (
        ConfigurationRecipe(model="teacher", steps=50),
        ConfigurationRecipe(model="teacher", steps=4),
        ConfigurationRecipe(model="teacher", steps=4, guidance=1.0),
        *(ConfigurationRecipe(model="student", steps=steps) for steps in (1, 2, 4, 8)),
    )
    """Networks and ways to draw that are measured; the teacher with the most evaluations is what
    the others are compared with."""
    features: Name = "pixels"
    """Feature space of distances, as `NAME` or `NAME:SOURCE`, such as `clip:FOLDER`; `pixels` needs
    no network and says little about real models."""
    references: Name | None = None
    """Real pictures to compare with, such as `folder:PATH`; null: none."""
    cache: Name | None = None
    """Folder with measurements of the teacher that came with the model, read only."""
    gallery: Few = 12
    """Number of prompts shown in the report."""
    batch: Size = 64
    """Pictures drawn at a time; lower it until it fits the memory."""
    seed: Seed = 0
    """Picture i starts from the noise of seed + i."""
