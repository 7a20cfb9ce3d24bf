"""Captioned 64x64 scenes: one or two coloured shapes on a plain background, drawn from a seed.

Things stand near one of four spots: small ones in the corners, large ones in the quarters.

A `Prompt` fixes some attributes of a scene and leaves the rest free; `draw_scene` fills the free
ones at random, so that one prompt has many pictures. `render` draws them, anti-aliased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 64  # pixels
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.12, 0.12),
    "green": (0.10, 0.68, 0.20),
    "blue": (0.12, 0.28, 0.92),
    "yellow": (0.96, 0.86, 0.10),
    "pink": (0.96, 0.40, 0.76),
    "cyan": (0.10, 0.82, 0.88),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.93, 0.93, 0.93),
    "gray": (0.52, 0.52, 0.52),
    "black": (0.07, 0.07, 0.07),
    "brown": (0.42, 0.25, 0.12),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII: dict[str, tuple[float, float]] = {"small": (6.0, 7.2), "large": (11.0, 13.0)}  # pixels
POSITIONS = ("left", "right", "top", "bottom")
_JITTER = 0.05  # half-width of the uniform variation of every colour channel
_GAP = 3.0  # pixels between the bounding boxes of two things
_WANDER = 1.0  # pixels that a thing may stand off its spot, either way
_SPOTS: dict[str, tuple[float, ...]] = {"small": (8, 56), "large": (16, 48)}


@dataclass(frozen=True)
class ThingSpec:
    """What a prompt fixes of one thing; `None` leaves the attribute free."""

    color: str
    shape: str
    size: str | None = None
    position: str | None = None

    def __str__(self) -> str:
        words = (self.size, self.color, self.shape, self.position)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Prompt:
    """What a caption fixes: one or two things, perhaps the background; `str` gives the text."""

    things: tuple[ThingSpec, ...]
    background: str | None = None

    def __str__(self) -> str:
        text = " and ".join(str(thing) for thing in self.things)
        return f"{text} on {self.background}" if self.background else text


@dataclass(frozen=True)
class Thing:
    """One drawn thing: names, centre and radius in pixels, colour in [0, 1]."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that `render` needs."""

    things: tuple[Thing, ...]
    background: str
    rgb: tuple[float, float, float]


def parse(caption: str) -> Prompt:
    """The prompt whose caption this is.

    Raises:
        ValueError: for a text outside the grammar, naming the first part that does not fit.
    """
    text, _, background = caption.partition(" on ")
    if background and background not in BACKGROUNDS:
        raise ValueError(f"unknown background {background!r}; use one of {', '.join(BACKGROUNDS)}")
    prompt = Prompt(tuple(map(_parse_thing, text.split(" and "))), background or None)
    if len(prompt.things) > 2:
        raise ValueError(f"{caption!r} names {len(prompt.things)} things; a scene holds at most 2")
    return prompt


def _parse_thing(text: str) -> ThingSpec:
    words = text.split()
    size = words.pop(0) if words and words[0] in RADII else None
    position = words.pop() if words and words[-1] in POSITIONS else None
    if len(words) != 2 or words[0] not in COLORS or words[1] not in SHAPES:
        raise ValueError(f"{text!r} is not '[size] COLOUR SHAPE [position]'")
    return ThingSpec(words[0], words[1], size, position)


def draw_scene(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene that fits the prompt; everything the prompt leaves open is drawn at random."""
    specs = list(prompt.things)
    if len(specs) == 1 and rng.random() < 0.5:
        specs.append(draw_other(rng, 0.0, specs[0]))
    background = prompt.background or choice(rng, tuple(BACKGROUNDS))
    while (things := _place(specs, rng)) is None:
        pass
    return Scene(things, background, _jitter(BACKGROUNDS[background], rng))


def draw_spec(rng: np.random.Generator, mention: float) -> ThingSpec:
    """A thing whose size and position are each mentioned with some probability."""
    size = choice(rng, tuple(RADII)) if rng.random() < mention else None
    position = choice(rng, POSITIONS) if rng.random() < mention else None
    return ThingSpec(choice(rng, tuple(COLORS)), choice(rng, SHAPES), size, position)


def draw_other(rng: np.random.Generator, mention: float, first: ThingSpec) -> ThingSpec:
    """A second thing, of another colour or shape than the first."""
    while True:
        other = draw_spec(rng, mention)
        if (other.color, other.shape) != (first.color, first.shape):
            return other


def _place(specs: Sequence[ThingSpec], rng: np.random.Generator) -> tuple[Thing, ...] | None:
    """One attempt at putting the things down without touching; None where it fails."""
    placed: list[Thing] = []
    for spec in specs:
        size = spec.size or choice(rng, tuple(RADII))
        radius = float(rng.uniform(*RADII[size]))
        x, y = _centre(size, spec.position, rng)
        for other in placed:
            apart = radius + other.radius + _GAP
            if abs(x - other.x) < apart and abs(y - other.y) < apart:
                return None
        rgb = _jitter(COLORS[spec.color], rng)
        placed.append(Thing(spec.color, spec.shape, size, x, y, radius, rgb))
    return tuple(placed)


def _centre(size: str, position: str | None, rng: np.random.Generator) -> tuple[float, float]:
    """A spot on the demanded side of the picture, a little off its middle."""

    def along(before: str, after: str) -> float:
        low, high = _SPOTS[size][:1], _SPOTS[size][1:]
        spots = {before: low, after: high}.get(position or "", low + high)
        return spots[int(rng.integers(len(spots)))]

    x, y = along("left", "right"), along("top", "bottom")
    return x + float(rng.uniform(-_WANDER, _WANDER)), y + float(rng.uniform(-_WANDER, _WANDER))


def _jitter(rgb: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = np.clip(np.asarray(rgb) + rng.uniform(-_JITTER, _JITTER, 3), 0.0, 1.0)
    return float(red), float(green), float(blue)


def choice(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of the names, all equally likely."""
    return names[int(rng.integers(len(names)))]


def shape_distance(
    shape: str, dx: npt.NDArray[Any], dy: npt.NDArray[Any], radius: float
) -> npt.NDArray[Any]:
    """Signed distance in pixels (negative inside) of offsets from the centre; y points down.

    Raises:
        ValueError: for a shape that the world does not have.
    """
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.88 * radius
    if shape == "triangle":
        base = 0.85 * radius
        side = (ax * (base + radius) - (dy + radius) * radius) / np.hypot(base + radius, radius)
        return np.maximum(side, dy - base)
    if shape == "cross":
        arm = 0.34 * radius
        return np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ax - arm, ay - radius))
    raise ValueError(f"unknown shape {shape!r}; use one of {', '.join(SHAPES)}")


def render(scenes: Sequence[Scene]) -> npt.NDArray[np.float32]:
    """Pixels [B, 3, 64, 64] in [0, 1], anti-aliased over one pixel."""
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    images = np.empty((len(scenes), 3, SIDE, SIDE), dtype=np.float32)
    for image, scene in zip(images, scenes, strict=True):
        image[:] = np.asarray(scene.rgb, dtype=np.float32)[:, None, None]
        for thing in scene.things:
            dx, dy = grid[None, :] - np.float32(thing.x), grid[:, None] - np.float32(thing.y)
            distance = shape_distance(thing.shape, dx, dy, thing.radius)
            cover = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
            colour = np.asarray(thing.rgb, dtype=np.float32)[:, None, None]
            image += cover * (colour - image)
    return images
