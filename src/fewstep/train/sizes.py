"""The size of the pictures of an iteration, where a run has several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from fewstep.core.noise import Draws
from fewstep.train.state import Run
from fewstep.train.step import Algorithm


@contextmanager
def at_size_of(run: Run, draws: Draws) -> Iterator[Algorithm]:
    """Context of an iteration at the size that is drawn for it, the same in all processes.

    Yields:
        What the iteration does. Outside, the model is at the first size: where latents are packed,
        their shape does not determine the picture's, and the model remembers it.
    """
    sizes = run.recipe.resolution.sizes
    if len(sizes) == 1:
        yield run.algorithm
        return
    size = sizes[int(torch.randint(len(sizes), (), generator=draws.shared("resolution")))]
    shift = run.backbone.student_shift(run.recipe.grid, *size)
    try:
        yield replace(run.algorithm, latent_shape=run.backbone.latent_shape(*size), shift=shift)
    finally:
        run.backbone.latent_shape(*sizes[0])
