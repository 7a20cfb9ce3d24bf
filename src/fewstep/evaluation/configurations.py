"""Configurations: a network and a way to draw from it, one row of the table of figures each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import Sampler
from fewstep.models.base import Backbone


@dataclass(frozen=True)
class Configuration:
    """One row of the table of figures.

    Attributes:
        model: Whose pictures, `teacher` or `student`.
        sampler: Drawn how.
        own_shift: Whether that is on the network's own grid.
    """

    model: str
    sampler: Sampler
    own_shift: bool = True

    @property
    def name(self) -> str:
        """Such as `teacher@50 guided` or `student@4`; `teacher@4 shift 1.5` on another's grid."""
        guided = " guided" if self.sampler.guidance != 1.0 else ""
        shifted = "" if self.own_shift else f" shift {self.sampler.shift:g}"
        return f"{self.model}@{self.sampler.steps}{guided}{shifted}"

    def describe(self, backbone: Backbone) -> dict[str, Any]:
        """What evaluation.json says of it before it is measured."""
        return {
            "name": self.name,
            "model": self.model,
            "steps": self.sampler.steps,
            "guidance": self.sampler.guidance,
            "own_shift": self.own_shift,
            "base_sigmas": self.sampler.base_sigmas,
            "sigmas": [round(float(sigma), 6) for sigma in self.sampler.sigmas(backbone)],
            "evaluations": self.sampler.evaluations(backbone),
        }


def resolve_configurations(run: RunFolder, backbone: Backbone) -> list[Configuration]:
    """The declared configurations, the model's defaults filled in; the student is unguided."""
    configurations = []
    for declared in run.recipe.evaluate.configurations:
        guidance = declared.guidance
        if guidance is None:
            guidance = backbone.default_guidance if declared.model == "teacher" else 1.0
        own = run.recipe.grid.shift if declared.model == "student" else None
        shift = declared.shift or own
        steps = declared.steps or backbone.default_steps
        sampler = Sampler(steps, guidance, *run.size, shift=shift)
        configurations.append(Configuration(declared.model, sampler, own_shift=shift == own))
    return configurations


def is_baseline(row: Mapping[str, Any], student: Mapping[str, Any]) -> bool:
    """Whether a row of evaluation.json is what a student has to beat.

    That is the guided teacher at as many steps, on its own grid, which is how the model is used.
    """
    guided = row["model"] == "teacher" and row["guidance"] != 1.0 and row["own_shift"]
    return bool(guided and student["model"] == "student" and row["steps"] == student["steps"])
