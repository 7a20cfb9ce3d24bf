"""Ground truths: what can draw a real picture of a prompt and judge whether a picture shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import Verdict
from fewstep.utils.errors import unknown
from fewstep.utils.files import digest_files


class Truth(Protocol):
    """A judge of pictures. A text-to-image model of the wide world has none, and does without.

    Attributes:
        key: Changes whenever its judgement may change; part of every cache key.
    """

    key: str

    def knows(self, prompt: str) -> bool:
        """Whether the prompt is one that it can draw and judge."""
        ...

    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Fresh real pictures of the prompts, [N, 3, H, W] in [0, 1]."""
        ...

    def judge(self, prompts: Sequence[str], images: Tensor) -> tuple[Verdict, ...]:
        """What each picture shows of its prompt."""
        ...


class Scenes:
    """The tiny world: its renderer draws, its oracle reads."""

    def __init__(self) -> None:
        from fewstep.toyworld import oracle, scenes

        self._oracle, self._scenes = oracle, scenes
        self.key = f"scenes-{digest_files(Path(module.__file__) for module in (oracle, scenes))}"

    def knows(self, prompt: str) -> bool:
        """Whether the caption grammar has this prompt."""
        try:
            self._scenes.parse(prompt)
        except ValueError:
            return False
        return True

    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Scenes that fit the captions, free attributes drawn at random: [N, 3, 64, 64]."""
        rng = np.random.default_rng([seed, 1])
        parsed = map(self._scenes.parse, prompts)
        drawn = [self._scenes.draw_scene(prompt, rng) for prompt in parsed]
        return torch.from_numpy(self._scenes.render(drawn))

    def judge(self, prompts: Sequence[str], images: Tensor) -> tuple[Verdict, ...]:
        """The oracle's verdict on each picture."""
        pairs = zip(prompts, images.float().cpu().numpy(), strict=True)
        return tuple(
            self._oracle.judge(self._scenes.parse(prompt), self._oracle.read(image)).scores
            for prompt, image in pairs
        )


_TRUTHS = {"scenes": Scenes}


def available() -> list[str]:
    """Names of all ground truths, sorted."""
    return sorted(_TRUTHS)


def load(name: str) -> Truth:
    """The ground truth of this name.

    Raises:
        FewstepError: No such ground truth; the nearest name is given.
    """
    if name not in _TRUTHS:
        raise unknown("ground truth", name, _TRUTHS)
    return _TRUTHS[name]()
