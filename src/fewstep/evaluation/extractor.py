"""Configurations, and their pictures, drawn and measured batch by batch; none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.evaluation import references as real
from fewstep.evaluation.features import Features
from fewstep.evaluation.metrics.base import FEATURES, Measurements, Metric, Values
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import Sampler, draw_batches
from fewstep.inference.source import Source
from fewstep.models.base import Backbone
from fewstep.utils.files import digest_text

_FORMAT = 3  # of measurements: those in an older one are not found, and drawn again
_REPEATS_FROM = 1_000_000  # seeds of the repeated pictures, far from those of the single ones


@dataclass(frozen=True)
class Configuration:
    """One row of the table of figures: a network, and a way to draw from it."""

    model: str  # `teacher` or `student`
    sampler: Sampler
    own_shift: bool = True  # whether that is on the network's own grid

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


def configurations_of(model: str, run: RunFolder, backbone: Backbone) -> list[Configuration]:
    """The recipe's configurations of the `teacher` or the `student`, defaults filled in.

    A student is unguided unless the recipe says otherwise.
    """
    configurations = []
    for declared in run.recipe.evaluate.configurations:
        if declared.model != model:
            continue
        guidance = declared.guidance
        if guidance is None:
            guidance = backbone.default_guidance if model == "teacher" else 1.0
        grid = run.recipe.grid if model == "student" else None
        own, terminal = (grid.shift, grid.terminal) if grid else (None, "model")
        shift = declared.shift or own
        steps = declared.steps or backbone.default_steps
        sampler = Sampler(steps, guidance, *run.size, shift=shift, terminal=terminal)
        configurations.append(Configuration(model, sampler, own_shift=shift == own))
    return configurations


def is_baseline(row: Mapping[str, Any], student: Mapping[str, Any]) -> bool:
    """Whether a row of evaluation.json is what a student has to beat.

    That is the guided teacher at as many steps, on its own grid, which is how the model is used.
    """
    guided = row["model"] == "teacher" and row["guidance"] != 1.0 and row["own_shift"]
    return bool(guided and student["model"] == "student" and row["steps"] == student["steps"])


@dataclass(frozen=True, eq=False)
class Extractor:
    """What is drawn of every configuration, and what is measured of each picture.

    Attributes:
        prompts: N prompts, each drawn once; picture i starts from the noise of seed + i.
        repeated: Of the first M of them there are K pictures each, the single one among them.
        seed: Where the seeds begin.
        features: The space that pictures are compared in; None where no metric needs one.
        metrics: Those that read pictures are called on each batch.
        batch: Pictures drawn at a time.
    """

    prompts: Sequence[str]
    repeated: tuple[int, int]
    seed: int
    features: Features | None
    metrics: Sequence[Metric] = ()
    batch: int = 64

    @property
    def key(self) -> str:
        """Fingerprint of everything but the network and the sampler."""
        space = self.features.key if self.features else None
        metrics = [metric.key for metric in self.metrics if metric.measures]
        numbers = f"{_FORMAT} {self.repeated} {self.seed} {space} {metrics}"
        return digest_text(numbers, *self.prompts)

    def load(self, source: Source, *, spill: Path | None = None) -> Backbone:
        """The model to draw from, with all prompts encoded; `spill` as for `Source.load`."""
        return source.load(self.prompts, batch=self.batch, spill=spill)

    def cache_key(self, backbone: Backbone, net: nn.Module, sampler: Sampler, model: str) -> str:
        """Fingerprint of all that `read` depends on; `model` is that of the network's weights."""
        options = backbone.stock_call(sampler.base_sigmas, *sampler.size(backbone))
        call = f"{options} {next(net.parameters()).dtype}"
        if sampler.terminal != "model":
            call += f" ends at {sampler.terminal}"
        return digest_text(model, call, repr(sampler), self.key)

    def read(self, backbone: Backbone, net: nn.Module, sampler: Sampler) -> Measurements:
        """Draws and measures all pictures of a configuration; the noise is the same for all."""

        def draw(prompts: Sequence[str], repeats: int) -> Iterable[Tensor]:
            first = self.seed + _REPEATS_FROM * repeats
            seeds = range(first, first + len(prompts))
            return draw_batches(backbone, net, prompts, seeds, sampler=sampler, batch=self.batch)

        return self._measure_all(draw)

    def read_real(self, source: real.Source, seed: int, size: tuple[int, int]) -> Measurements:
        """The same of real pictures; of a source that is not paired, features alone."""
        if not source.paired:
            points = self._measure((), source.draw(self.prompts, seed, size))
            return Measurements({k: Values(v, v[:0, None]) for k, v in points.items()})
        return self._measure_all(
            lambda prompts, repeats: source.draw(prompts, seed + repeats, size)
        )

    def _measure_all(self, draw: Callable[[Sequence[str], int], Iterable[Tensor]]) -> Measurements:
        """Measures pictures of ``draw(prompts, 0)``, and the repeated ones of ``draw(..., 1)``."""
        count, times = self.repeated
        single = self._measure(self.prompts, draw(self.prompts, 0))
        prompts = [prompt for prompt in self.prompts[:count] for _ in range(times - 1)]
        repeated = self._measure(prompts, draw(prompts, 1))
        values = {}
        for name, one in single.items():
            others = repeated[name].reshape(count, times - 1, *one.shape[1:])
            values[name] = Values(one, torch.cat([one[:count, None], others], dim=1))
        return Measurements(values)

    @torch.no_grad()
    def _measure(self, prompts: Sequence[str], batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Features and values of each metric, [N, ...]; without prompts, features only."""
        measures: dict[str, Callable[[Sequence[str], Tensor], Tensor]] = {}
        if self.features is not None:
            features = self.features
            measures[FEATURES] = lambda _, images: features(images)
        if prompts:
            measures |= {metric.name: metric.measure for metric in self.metrics if metric.measures}
        parts: dict[str, list[Tensor]] = {name: [] for name in measures}
        start = 0
        for images in batches:
            shown = prompts[start : start + len(images)]
            start += len(images)
            for name, measure in measures.items():
                parts[name].append(measure(shown, images).cpu())
        return {name: torch.cat(tensors) for name, tensors in parts.items()}
