"""Feature spaces that pictures are compared in: one file each, found by name.

Installed packages may add more (``fewstep.features``): a function that returns `Features`, with one
argument if it takes a source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from fewstep.utils.registry import Registry, load_named


class Features(Protocol):
    """Maps pictures to points, bounded so that saturated colours cannot blow a distance up.

    Attributes:
        key: Changes whenever the numbers it gives may change; part of every cache key.
    """

    key: str

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> features [B, F], float32, on the CPU."""
        ...


FEATURES = Registry[Callable[..., Features]]("feature space", "fewstep.features", __name__)
load = partial(load_named, FEATURES)
"""The feature space of ``NAME`` or ``NAME:SOURCE``, such as ``clip:FOLDER``; see `load_named`."""
