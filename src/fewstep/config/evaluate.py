"""The evaluate section of a recipe: what is drawn after training, and how it is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.strict import Amount, Count, Positive, Section


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


class EvaluateRecipe(Section):
    """How the result is judged after training.

    Attributes:
        scores: Names of the scores; None takes all that apply.
        prompts: File with prompts that training did not see; `count` of them get one picture each.
        repeats: Of how many of them there are several pictures, for diversity, and how many each.
        configurations: What is scored; the teacher with the most evaluations is the reference.
        features: The feature space, as ``name`` or ``name:source``.
        truth: Who draws real pictures and judges them, such as ``scenes``; None without.
        measurements: Folder with measurements of the teacher that came with the model.
        gallery: Prompts shown in the report. seed: Image i starts from noise of seed + i.
    """

    scores: tuple[str, ...] | None = None
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
    truth: str | None = None
    measurements: str | None = None
    gallery: Count = 12
    batch: Count = 64
    seed: Amount = 0
