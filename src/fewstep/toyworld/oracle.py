"""An oracle that reads a scene's attributes back from its pixels, without any learned part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fewstep.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIDE,
    Prompt,
    ThingSpec,
    shape_distance,
)

_FOREGROUND = 0.16  # colour distance from the background at which a pixel belongs to a thing
_SMALLEST = 24  # pixels; anything smaller than this is a speck, not a thing
_SPECK = 6  # pixels; specks from here on spoil the picture
_FIT = 0.72  # overlap (IoU) with the ideal outline under which a shape is not recognised
_COLOUR = 0.30  # distance from the nearest named colour over which a colour is not recognised
_SIZE_BORDER = 9.5  # pixels of radius between small and large

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class SeenThing:
    """One thing as read: a name is None where the pixels fit none; centre and radius in pixels."""

    color: str | None
    shape: str | None
    size: str
    x: float
    y: float
    radius: float


_MISSING = SeenThing(None, None, "", math.nan, math.nan, math.nan)  # has nothing that is asked for


@dataclass(frozen=True)
class Reading:
    """All that was read from one picture. `specks` counts blobs too small to be a thing."""

    background: str | None
    things: tuple[SeenThing, ...]
    specks: int


Scores: TypeAlias = list[tuple[str, bool]]
"""One flag per attribute that a prompt mentions: its name, and whether the picture has it."""


def read(image: Pixels) -> Reading:
    """What stands in one picture.

    Args:
        image: [3, 64, 64] in [0, 1].

    Raises:
        ValueError: for another shape.
    """
    if image.shape != (3, SIDE, SIDE):
        raise ValueError(f"the oracle reads [3, {SIDE}, {SIDE}] pictures, not {list(image.shape)}")
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    ground = np.median(border, axis=1)
    apart = np.sqrt(((image - ground[:, None, None]) ** 2).sum(0))
    blobs, count = ndimage.label(apart > _FOREGROUND, structure=np.ones((3, 3)))
    things, specks = [], 0
    for label in range(1, count + 1):
        mask = blobs == label
        pixels = int(mask.sum())
        if pixels >= _SMALLEST:
            things.append(_read_thing(image, ground, mask))
        elif pixels >= _SPECK:
            specks += 1
    return Reading(_nearest(ground, BACKGROUNDS), tuple(things), specks)


def _read_thing(image: Pixels, ground: Pixels, mask: npt.NDArray[np.bool_]) -> SeenThing:
    core = ndimage.binary_erosion(mask)
    colour = np.median(image[:, core if core.any() else mask], axis=1)
    # How much of each pixel the thing covers: edges count in part.
    towards = colour - ground
    cover = np.tensordot(towards, image - ground[:, None, None], 1) / (towards @ towards + 1e-6)
    cover = np.where(ndimage.binary_dilation(mask), np.clip(cover, 0.0, 1.0), 0.0)
    shape, x, y, radius, fit = _fit_shape(cover)
    size = "small" if radius < _SIZE_BORDER else "large"
    return SeenThing(_nearest(colour, COLORS), shape if fit >= _FIT else None, size, x, y, radius)


def _fit_shape(cover: Pixels) -> tuple[str, float, float, float, float]:
    """Best outline for a coverage map: name, centre, radius (pixels), overlap in [0, 1]."""
    area = float(cover.sum())
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    x, y = float((cover.sum(0) @ grid) / area), float((cover.sum(1) @ grid) / area)
    best = ("", x, y, 0.0, -1.0)
    for name, (unit_area, drop) in _UNIT.items():
        radius = float(np.sqrt(area / unit_area))
        centre = y - drop * radius
        distance = shape_distance(name, grid[None, :] - x, grid[:, None] - centre, radius)
        ideal = np.clip(0.5 - distance, 0.0, 1.0)
        overlap = float(np.minimum(ideal, cover).sum() / np.maximum(ideal, cover).sum())
        if overlap > best[4]:
            best = (name, x, centre, radius, overlap)
    return best


def _unit_shape(name: str) -> tuple[float, float]:
    """Area and centroid height of the shape of radius 1, by counting points of a fine grid."""
    axis = np.linspace(-1.5, 1.5, 1201, dtype=np.float32)
    inside = shape_distance(name, axis[None, :], axis[:, None], 1.0) < 0
    area = float(inside.mean()) * 9.0
    return area, float((inside.sum(1) @ axis) / inside.sum())


_UNIT = {name: _unit_shape(name) for name in SHAPES}


def _nearest(rgb: Pixels, names: dict[str, tuple[float, float, float]]) -> str | None:
    distances = {
        name: float(np.linalg.norm(rgb - np.asarray(value))) for name, value in names.items()
    }
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= _COLOUR else None


def judge(prompt: Prompt, reading: Reading) -> Scores:
    """Whether a picture shows what its prompt asks for, attribute by attribute.

    The picture is right when all flags are true. The last one, `clean`, says that it holds no more
    than two things, each of which, mentioned or not, has a recognisable shape and colour: no
    ghosts, no specks. Things are matched to the prompt in the way that satisfies most of it.
    """
    missing = [_MISSING] * (len(prompt.things) - len(reading.things))
    scores = max(
        (
            _score(prompt.things, chosen)
            for chosen in permutations([*reading.things, *missing], len(prompt.things))
        ),
        key=lambda flags: sum(flag for _, flag in flags),
    )
    if prompt.background:
        scores.append(("background", reading.background == prompt.background))
    whole = all(thing.shape and thing.color for thing in reading.things)
    return [*scores, ("clean", whole and len(reading.things) <= 2 and reading.specks == 0)]


def _score(specs: Sequence[ThingSpec], seen: Sequence[SeenThing]) -> Scores:
    flags: Scores = []
    for spec, thing in zip(specs, seen, strict=True):
        flags += [("color", thing.color == spec.color), ("shape", thing.shape == spec.shape)]
        if spec.size:
            flags.append(("size", thing.size == spec.size))
        if spec.position:
            flags.append(("position", _stands(thing, spec.position)))
    return flags


def _stands(thing: SeenThing, position: str) -> bool:
    along = thing.x if position in ("left", "right") else thing.y
    return along < SIDE / 2 if position in ("left", "top") else along > SIDE / 2
