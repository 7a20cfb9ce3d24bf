"""The evaluate section of a recipe: what is drawn after training, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fewstep.config.strict import Amount, Count, Named, Positive, Section


class ConfigurationRecipe(Section):
    """Whose pictures are scored, drawn in how many steps (None: as many as the model's pipeline).

    Attributes:
        guidance: 1 is off; None is the model's own default, and off for the student.
        shift: Static shift, Eq. 12a; None is the student's `grid.shift`, or the teacher's own.
    """

    model: Literal["teacher", "student"]
    steps: Count | None = None
    guidance: Annotated[float, Field(ge=1)] | None = None
    shift: Positive | None = None


class MetricRecipe(Named):
    """A metric by name; further keys are that metric's own settings."""


def _as_metric(value: Any) -> Any:
    """A name alone is a metric without settings."""
    return {"name": value} if isinstance(value, str) else value


class EvaluateRecipe(Section):
    """How the result is measured after training.

    Attributes:
        metrics: Names, or mappings of a name and the metric's settings, such as ``{name:
            clip_score, model: FOLDER}``.
        prompts: File with prompts that training did not see; `count` of them get one picture each.
        repeats: Of how many of them there are several pictures, for diversity, and how many each.
        configurations: What is scored; the teacher with the most evaluations is the reference.
        features: The feature space, as ``NAME`` or ``NAME:SOURCE``, such as ``clip:FOLDER``.
        references: Real pictures to compare with, such as ``folder:PATH``; None without.
        cache: Folder with measurements of the teacher that came with the model, read only.
        gallery: Prompts shown in the report. seed: Image i starts from noise of seed + i.
    """

    metrics: tuple[Annotated[MetricRecipe, BeforeValidator(_as_metric)], ...] = (
        MetricRecipe(name="frechet"),
        MetricRecipe(name="coverage"),
        MetricRecipe(name="diversity"),
    )
    prompts: str | None = None
    count: Count = 1000
    repeats: tuple[Count, Annotated[int, Field(ge=2)]] = (48, 8)
    configurations: Annotated[tuple[ConfigurationRecipe, ...], Field(min_length=1)] = (
        ConfigurationRecipe(model="teacher", steps=50),
        ConfigurationRecipe(model="teacher", steps=4),
        ConfigurationRecipe(model="teacher", steps=4, guidance=1.0),
        *(ConfigurationRecipe(model="student", steps=steps) for steps in (1, 2, 4, 8)),
    )
    features: str = "pixels"
    references: str | None = None
    cache: str | None = None
    gallery: Count = 12
    batch: Count = 64
    seed: Amount = 0
