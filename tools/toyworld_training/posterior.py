"""Targets with less noise: the mean of all scenes that may lie behind a noisy latent.

Flow matching asks for the scene that a noisy latent was made from, though any scene of the same
prompt might have been it. What the network should predict is their posterior mean, and with scenes
to compare with it can be computed (stable target field, Xu et al., arXiv 2302.00670, eq. 7).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.toyworld.scenes import (
    BACKGROUNDS,
    COLORS,
    RADII,
    SHAPES,
    SIDE,
    Prompt,
    Scene,
    ThingSpec,
)

Mask = npt.NDArray[np.bool_]
FACTS = 11  # numbers by which `describe` tells a scene


def describe(scene: Scene) -> list[int]:
    """A scene in `FACTS` small numbers: its ground, then five of each thing, -1 for none."""
    facts = [list(BACKGROUNDS).index(scene.background)]
    for thing in scene.things:
        size, color = list(RADII).index(thing.size), list(COLORS).index(thing.color)
        left, top = int(thing.x < SIDE / 2), int(thing.y < SIDE / 2)
        facts += [color, SHAPES.index(thing.shape), size, left, top]
    return facts + [-1] * (FACTS - len(facts))


class SceneBank:
    """Which of many scenes fit a prompt.

    Args:
        facts: `describe` of each scene [n, FACTS].
    """

    def __init__(self, facts: Tensor) -> None:
        self._grounds = facts[:, 0].numpy()
        self._things = facts[:, 1:].reshape(-1, 2, 5).numpy()
        self._paired = self._things[:, 1, 0] >= 0
        self._specs: dict[ThingSpec, Mask] = {}
        self._fitting: dict[Prompt, tuple[Tensor, Tensor]] = {}

    def candidates(
        self, row: int, prompt: Prompt | None, count: int, generator: torch.Generator
    ) -> Tensor:
        """Rows [count] of scenes that the prompt may have meant as well, `row` among them.

        Where too few scenes fit, they are repeated. A prompt of one thing means scenes with one
        and with two in equal parts, as `draw_scene` draws them; no prompt means every scene.
        """
        if prompt is None:
            rows = torch.randint(len(self._paired), (count,), generator=generator)
            place = 0
        else:
            alone, paired = self.fitting(prompt)
            share = 0 if not len(alone) else count if not len(paired) else count // 2
            chosen = (_some(alone, share, generator), _some(paired, count - share, generator))
            rows = torch.cat(chosen)
            place = share if self._paired[row] else 0
        if not (rows == row).any():
            rows[place] = row
        return rows

    def fitting(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Rows of the scenes with one thing, and with two, that a prompt allows."""
        if prompt not in self._fitting:
            shown = [self._shows(spec) for spec in prompt.things]
            if len(shown) == 1:
                mask = shown[0].any(axis=1)
            else:
                first, second = shown
                mask = (first[:, 0] & second[:, 1]) | (first[:, 1] & second[:, 0])
            if prompt.background:
                mask = mask & (self._grounds == list(BACKGROUNDS).index(prompt.background))
            sides = (mask & ~self._paired, mask & self._paired)
            alone, paired = (torch.from_numpy(np.flatnonzero(side)) for side in sides)
            self._fitting[prompt] = alone, paired
        return self._fitting[prompt]

    def _shows(self, spec: ThingSpec) -> Mask:
        """Whether the first and the second thing of each scene are as described [n, 2]."""
        if spec not in self._specs:
            things = self._things
            mask = things[..., 0] == list(COLORS).index(spec.color)
            mask &= things[..., 1] == SHAPES.index(spec.shape)
            if spec.size:
                mask &= things[..., 2] == list(RADII).index(spec.size)
            if spec.position:
                axis = 3 if spec.position in ("left", "right") else 4
                mask &= things[..., axis] == int(spec.position in ("left", "top"))
            self._specs[spec] = mask
        return self._specs[spec]


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """So many of the rows [count], each as often as the others, give or take one."""
    if count == 0:
        return rows[:0]
    chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
    return chosen.repeat(-(-count // len(chosen)))[:count]


def posterior_mean(xt: Tensor, sigma: Tensor, candidates: Tensor) -> Tensor:
    """The mean of the candidates, each weighted by how likely it became `xt`.

    Args:
        xt: Noisy latents [B, ...].
        sigma: Noise levels [B], above 0.
        candidates: What each sample may have been made from [B, n, ...], equally likely before;
            the one that it was made from among them.

    Returns:
        Means [B, ...].
    """
    flat, noisy = candidates.flatten(2), xt.flatten(1)
    rest = (1 - sigma)[:, None]
    match = torch.einsum("bnd,bd->bn", flat, noisy) * rest
    energy = torch.linalg.vecdot(flat, flat) * rest.square() / 2
    weight = torch.softmax((match - energy) / sigma[:, None].square(), dim=1)
    return torch.einsum("bn,bnd->bd", weight, flat).view_as(xt)
