"""What a metric sees, and what a metric is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

FEATURES = "features"
"""Name under which measurements hold the pictures' features."""


@dataclass(frozen=True, eq=False)
class Values:
    """What was measured of each picture of a configuration.

    Attributes:
        single: Of one picture for each of N prompts, [N, ...].
        repeated: Of K pictures for each of the first M prompts, [M, K, ...].
    """

    single: Tensor
    repeated: Tensor


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of a configuration's pictures, by metric; the pictures are not kept."""

    values: Mapping[str, Values]

    @property
    def features(self) -> Values:
        """Points in the recipe's feature space: single [N, F], repeated [M, K, F]."""
        return self.values[FEATURES]


@dataclass(frozen=True, eq=False)
class References:
    """What a configuration is compared with.

    Attributes:
        named: By name: ``teacher``, the teacher with the most evaluations, and ``real`` pictures.
        baseline: Of a student, the guided teacher at as many steps, which it has to beat.
    """

    named: Mapping[str, Measurements] = field(default_factory=dict)
    baseline: Measurements | None = None

    def besides(self, measurements: Measurements) -> Iterator[tuple[str, Measurements]]:
        """All but the configuration itself: a distance to oneself says nothing."""
        return ((name, other) for name, other in self.named.items() if other is not measurements)


@dataclass(frozen=True)
class Figure:
    """How one figure of a metric is shown.

    Attributes:
        label: Heading for people.
        higher_is_better: None where neither is.
        percent: Whether it is a share, shown in percent.
        group: Title of a table of its own; empty for the table of all metrics.
    """

    label: str
    higher_is_better: bool | None = True
    percent: bool = False
    group: str = ""


class Metric(BaseModel):
    """A metric of pictures; fields are the settings that a recipe may give, checked strictly.

    Subclasses set the class attributes and define `measure`, where they read pictures, and
    `__call__`, unless the figure is the mean of what `measure` gives.

    Attributes:
        name: What recipes call it; its values are stored under this name.
        version: Raised whenever `measure` would give other values: old ones are then not reused.
        extra: Requirement to install for it, such as ``fewstep[NAME]``; None where there is none.
        licence: Licence of the weights that it uses; None where it uses none.
        higher_is_better: Of its figures, unless `figures` says it for each.
        needs_features: Whether `__call__` reads the features of the pictures.
        figures: Figures that reports show, by name; empty: all but errors and leads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    extra: ClassVar[str | None] = None
    licence: ClassVar[str | None] = None
    higher_is_better: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    figures: ClassVar[Mapping[str, Figure]] = {}

    @property
    def key(self) -> str:
        """Fingerprint of all that `measure` depends on besides prompts and pictures."""
        return f"{self.name} {self.version} {self.model_dump_json()}"

    @property
    def measures(self) -> bool:
        """Whether it reads pictures."""
        return type(self).measure is not Metric.measure

    def prepare(self, prompts: Sequence[str]) -> None:
        """Called before anything is drawn: loads what is needed, refuses prompts it cannot judge.

        Raises:
            FewstepError: Weights that cannot be loaded, or a prompt that means nothing to it.
        """

    def measure(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        """What `__call__` needs to know of some pictures, [B, ...] on the CPU.

        Args:
            prompts: B prompts.
            images: Their pictures [B, 3, H, W] in [0, 1], float32, on the CPU.
        """
        raise NotImplementedError

    def __call__(self, measurements: Measurements, references: References) -> dict[str, float]:
        """Figures of one configuration, by name.

        Unless overridden, of a metric whose `measure` gives one number a picture [B]: the mean over
        prompts, its standard error and its lead over the baseline; nothing of what it did not see.
        """
        if self.name not in measurements.values:
            return {}
        ours, baseline = measurements.values[self.name].single, references.baseline
        theirs = None if baseline is None else baseline.values[self.name].single
        return mean_and_error(self.name, ours) | lead(self.name, ours, theirs)

    def describe(self, figure: str) -> Figure | None:
        """How one of its figures is shown; None where it is not."""
        if self.figures:
            return self.figures.get(figure)
        if figure.endswith("_error") or figure.startswith("lead_"):
            return None
        return Figure(figure.replace("_", " "), self.higher_is_better)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Exact Euclidean distances in float64 between points [..., N, F] and [..., M, F]."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(first.double(), second.double(), compute_mode=mode)


def mean_and_error(name: str, values: Tensor) -> dict[str, float]:
    """Mean of independent values [N] as `name`, its standard error as `<name>_error`.

    A prompt without a value is a NaN and is left out. Nothing of no values, no error of one.
    """
    values = values[~values.isnan()]
    figures = {name: float(values.mean())} if len(values) else {}
    if len(values) > 1:
        figures[f"{name}_error"] = float(values.std() / len(values) ** 0.5)
    return figures


def lead(figure: str, ours: Tensor, theirs: Tensor | None) -> dict[str, float]:
    """By how much one mean exceeds another, `lead_<figure>`, and the difference's standard error.

    Both draw the same prompts from the same noise, so the error is that of paired values: what
    makes one prompt harder than the next cancels.

    Args:
        figure: Its name.
        ours: Its value for every prompt [N]; a prompt without a value is a NaN and is left out.
        theirs: The same of the other configuration [N]; None where there is none.
    """
    return (
        {} if theirs is None else mean_and_error(f"lead_{figure}", ours.double() - theirs.double())
    )
