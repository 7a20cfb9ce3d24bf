"""Arms: a network and a way to draw from it; their measurements, kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.evaluation.features import Features, extract
from fewstep.evaluation.metrics.base import Measurements
from fewstep.evaluation.metrics.oracle import wholly_right
from fewstep.evaluation.oracles import Truth
from fewstep.inference.sample import Sampler, sample_batch
from fewstep.models.base import Backbone
from fewstep.utils.files import digest_text, replacing

_FORMAT = 2  # of kept measurements: those in an older one are not found, and drawn again
_REPEATS_FROM = 1_000_000  # seeds of the repeated pictures, far from those of the single ones


@dataclass(frozen=True)
class Configuration:
    """One row of the score table.

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


@dataclass(frozen=True, eq=False)
class Extractor:
    """What is drawn of every configuration, and how it is read.

    Attributes:
        prompts: N prompts, each drawn once; picture i starts from the noise of seed + i.
        repeated: Of the first M of them there are K pictures each, the single one among them.
        seed: Where the seeds begin.
        features: The space that pictures are compared in.
        truth: Judge of pictures, or None.
        batch: Pictures drawn at a time.
    """

    prompts: Sequence[str]
    repeated: tuple[int, int]
    seed: int
    features: Features
    truth: Truth | None
    batch: int = 64

    @property
    def key(self) -> str:
        """Fingerprint of everything but the network and the sampler."""
        truth = self.truth.key if self.truth else "none"
        numbers = f"{_FORMAT} {self.repeated} {self.seed} {self.features.key} {truth}"
        return digest_text(numbers, *self.prompts)

    def read(self, backbone: Backbone, net: nn.Module, sampler: Sampler) -> Measurements:
        """Draws all pictures of a configuration and reads them; the noise is the same for all."""
        seeds = range(self.seed, self.seed + len(self.prompts))
        single = sample_batch(backbone, net, self.prompts, seeds, sampler=sampler, batch=self.batch)
        prompts, seeds = self._others()
        again = sample_batch(backbone, net, prompts, seeds, sampler=sampler, batch=self.batch)
        return self._measurements(single, again)

    def read_real(self, seed: int) -> Measurements:
        """The same of real pictures, drawn afresh by the truth."""
        assert self.truth is not None
        prompts, _ = self._others()
        return self._measurements(
            self.truth.draw(self.prompts, seed), self.truth.draw(prompts, seed + 1)
        )

    def _others(self) -> tuple[list[str], range]:
        """Prompts and seeds of the repeated pictures that are not single ones as well."""
        count, times = self.repeated
        start = self.seed + _REPEATS_FROM
        prompts = [prompt for prompt in self.prompts[:count] for _ in range(times - 1)]
        return prompts, range(start, start + len(prompts))

    def _measurements(self, single: Tensor, again: Tensor) -> Measurements:
        features = extract(self.features, single, batch=self.batch)
        others = extract(self.features, again, batch=self.batch)
        verdicts = shown = None
        if self.truth:
            verdicts = self.truth.judge(self.prompts, single)
            others_right = wholly_right(self.truth.judge(self._others()[0], again))
            shown = self._together(wholly_right(verdicts), others_right)
        return Measurements(features, self._together(features, others), verdicts, shown)

    def _together(self, single: Tensor, others: Tensor) -> Tensor:
        """K values of each of the first M prompts [M, K, ...], of [N, ...] and [M (K - 1), ...]."""
        count, times = self.repeated
        rows = others.reshape(count, times - 1, *single.shape[1:])
        return torch.cat([single[:count, None], rows], dim=1)


@dataclass(frozen=True)
class FeatureCache:
    """Folders in which measurements are kept under a key; new ones go to the first.

    A later folder may be one that cannot be written to, such as the data of a package.
    """

    folders: tuple[Path, ...]

    def find(self, key: str) -> Measurements | None:
        """The measurements of this key, if any folder holds them whole."""
        for folder in self.folders:
            path = folder / f"{key}.safetensors"
            if path.is_file():
                try:
                    return load_measurements(path)
                except (SafetensorError, KeyError, ValueError):
                    continue  # a torn file is as good as none
        return None

    def keep(self, key: str, measurements: Measurements) -> None:
        """Puts measurements into the first folder; a disk that refuses costs only time later."""
        path = self.folders[0] / f"{key}.safetensors"
        try:
            save_measurements(path, measurements)
        except OSError:
            path.unlink(missing_ok=True)


def save_measurements(path: Path, measurements: Measurements) -> None:
    """Writes measurements to one safetensors file, whole or not at all."""
    tensors = {
        "single": measurements.single.contiguous(),
        "repeated": measurements.repeated.contiguous(),
    }
    if measurements.shown is not None:
        tensors["shown"] = measurements.shown.contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"verdicts": json.dumps(measurements.verdicts)})


def load_measurements(path: Path) -> Measurements:
    """Inverse of `save_measurements`."""
    with safe_open(path, framework="pt") as file:
        verdicts = json.loads(file.metadata()["verdicts"])
        single: Tensor = file.get_tensor("single")
        repeated: Tensor = file.get_tensor("repeated")
        shown: Tensor | None = file.get_tensor("shown") if verdicts is not None else None
    if verdicts is not None:
        verdicts = tuple(tuple((name, flag) for name, flag in verdict) for verdict in verdicts)
    return Measurements(single.to(torch.float32), repeated.to(torch.float32), verdicts, shown)
