"""Real pictures of the tiny world: ``evaluate.references: scenes``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.toyworld.scenes import draw_scene, parse, render
from fewstep.utils.errors import FewstepError

_BATCH = 64


class Scenes:
    """Scenes that fit the captions, with what the captions leave open drawn at random."""

    paired = True

    def draw(
        self, prompts: Sequence[str], seed: int, size: tuple[int, int] = (64, 64)
    ) -> Iterator[Tensor]:
        """One scene a prompt, 64 at a time, [64, 3, 64, 64].

        Raises:
            FewstepError: A prompt outside the grammar of captions.
        """
        rng = np.random.default_rng([seed, 1])
        for start in range(0, len(prompts), _BATCH):
            try:
                parsed = [parse(prompt) for prompt in prompts[start : start + _BATCH]]
            except ValueError as error:
                raise FewstepError(f"evaluate.references: scenes: {error}") from error
            yield torch.from_numpy(render([draw_scene(prompt, rng) for prompt in parsed]))
