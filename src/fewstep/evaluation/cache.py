"""Measurements kept in files, so that the teacher need not be drawn again."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.config import EvaluateRecipe
from fewstep.evaluation.metrics.base import Measurements, Values
from fewstep.utils import hardware
from fewstep.utils.disk import WriteFailed
from fewstep.utils.resources import resolve
from fewstep.utils.tensors import cache_home, keep_tensors, kept_tensors

_PARTS = {each.name for each in fields(Values)}


@dataclass(frozen=True)
class FeatureCache:
    """Measurements by key: those that came with a model, then the user's own.

    Attributes:
        own: Folder that new ones are written to.
        shipped: Folder that is only read, such as the data of a package; it comes first.
    """

    own: Path
    shipped: Path | None = None

    @classmethod
    def of(cls, settings: EvaluateRecipe) -> Self:
        """The user's folder, and what came with the recipe's model."""
        shipped = resolve(settings.cache) if settings.cache else None
        return cls(cache_home() / "measurements", shipped)

    def find(self, key: str) -> tuple[Measurements, dict[str, Any]] | None:
        """The measurements of this key and where they come from, if a folder holds them whole.

        Of the latter, ``where`` is `shipped` or `cache`; ``date`` and ``hardware`` are those of the
        drawing.
        """
        for where, folder in (("shipped", self.shipped), ("cache", self.own)):
            found = load_measurements(folder / f"{key}.safetensors") if folder else None
            if found is not None:
                return found[0], {"where": where, **found[1]}
        return None

    def keep(self, key: str, measurements: Measurements) -> None:
        """Writes measurements to the user's folder; a disk that refuses costs only time later."""
        with suppress(WriteFailed):
            save_measurements(self.own / f"{key}.safetensors", measurements)


def save_measurements(
    path: Path, measurements: Measurements, *, compact: bool = False, **facts: Any
) -> None:
    """Writes measurements to one safetensors file, whole or not at all.

    Args:
        path: The file.
        measurements: What was measured.
        compact: Floating-point values in half precision, for files that ship with a model.
        facts: Kept beside the date and the hardware, such as what was drawn.
    """
    tensors = {}
    for name, values in measurements.values.items():
        for part, tensor in vars(values).items():
            small = compact and tensor.is_floating_point()
            tensors[f"{name}.{part}"] = tensor.half() if small else tensor.clone()
    made = {"date": date.today().isoformat(), "hardware": hardware.describe(), **facts}
    keep_tensors(path, tensors, **made)


def load_measurements(path: Path) -> tuple[Measurements, dict[str, Any]] | None:
    """Inverse of `save_measurements`: the measurements, and when and where they were made.

    None where there is no such file, or it is damaged.
    """
    tensors, made = kept_tensors(path) or ({}, {})
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        parts[name][part] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    if not made.get("date") or any(each.keys() != _PARTS for each in parts.values()):
        return None
    return Measurements({name: Values(**each) for name, each in parts.items()}), made
