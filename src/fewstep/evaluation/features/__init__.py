"""Feature spaces that pictures are compared in: one file each, found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Protocol

import torch
from torch import Tensor

from fewstep.utils.errors import FewstepError, unknown


class Features(Protocol):
    """Maps pictures to points, bounded so that saturated colours cannot blow a distance up.

    Attributes:
        key: Changes whenever the numbers it gives may change; part of every cache key.
    """

    key: str

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> features [B, F], float32."""
        ...


def available() -> list[str]:
    """Names of all feature spaces, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def load(text: str) -> Features:
    """The feature space that `name` or `name:source` stands for, such as `clip:FOLDER`.

    Raises:
        FewstepError: No such feature space; a source too many, or one missing.
    """
    name, colon, source = text.partition(":")
    if name not in available():
        raise unknown("feature space", name, available())
    make = importlib.import_module(f"{__name__}.{name}").load
    takes = len(inspect.signature(make).parameters) > 0
    if takes != bool(colon):
        raise FewstepError(
            f"feature space {text!r}: write it as {name}:SOURCE"
            if takes
            else f"feature space {text!r}: {name} takes no source"
        )
    return make(source) if takes else make()


@torch.no_grad()
def extract(features: Features, images: Tensor, *, batch: int = 64) -> Tensor:
    """Features of many pictures, a batch at a time: [N, 3, H, W] -> [N, F] on the CPU."""
    parts = [features(images[i : i + batch]).float().cpu() for i in range(0, len(images), batch)]
    return torch.cat(parts)
