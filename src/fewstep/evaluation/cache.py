"""Measurements kept in files, so that the teacher need not be drawn again."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.config import EvaluateRecipe
from fewstep.evaluation.metrics.base import Measurements, Values
from fewstep.utils import hardware
from fewstep.utils.files import replacing
from fewstep.utils.resources import resolve


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
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        home = os.environ.get("FEWSTEP_CACHE") or os.path.join(caches, "fewstep")
        shipped = resolve(settings.cache) if settings.cache else None
        return cls(Path(home) / "measurements", shipped)

    def find(self, key: str) -> tuple[Measurements, dict[str, Any]] | None:
        """The measurements of this key and where they come from, if a folder holds them whole.

        Of the latter, ``where`` is `shipped` or `cache`; ``date`` and ``hardware`` are those of the
        drawing.
        """
        for where, folder in (("shipped", self.shipped), ("cache", self.own)):
            # A torn file is as good as none.
            with suppress(FileNotFoundError, SafetensorError, KeyError, ValueError):
                if folder is not None:
                    measurements, made = load_measurements(folder / f"{key}.safetensors")
                    return measurements, {"where": where, **made}
        return None

    def keep(self, key: str, measurements: Measurements) -> None:
        """Writes measurements to the user's folder; a disk that refuses costs only time later."""
        with suppress(OSError):
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
            tensors[f"{name}.{part}"] = (tensor.half() if small else tensor.clone()).contiguous()
    made = {"date": date.today().isoformat(), "hardware": hardware.describe(), **facts}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"made": json.dumps(made)})


def load_measurements(path: Path) -> tuple[Measurements, dict[str, Any]]:
    """Inverse of `save_measurements`: the measurements, and when and where they were made."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with safe_open(path, framework="pt") as file:
        made: dict[str, Any] = json.loads(file.metadata()["made"])
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name, _, part = key.rpartition(".")
            tensor: Tensor = file.get_tensor(key)
            parts[name][part] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return Measurements({name: Values(**tensors) for name, tensors in parts.items()}), made
