"""Ratings of a preview, for keeping the best checkpoint.

Installed packages may add more (``fewstep.preview_scores``): functions such as `drift`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from fewstep.config.strict import ConfigError
from fewstep.utils.registry import Registry

PreviewScore: TypeAlias = Callable[[Tensor, Sequence[str], Tensor], float]
"""``score(images, prompts, teacher_images) -> float``, higher is better; images [P, 3, H, W]."""


def drift(images: Tensor, prompts: Sequence[str], teacher_images: Tensor) -> float:
    """Minus the mean distance between the colour statistics of student and teacher, per prompt.

    Compares mean and standard deviation of each channel; 0 is the best there is. It sees colour
    casts and over-baked contrast, not whether the prompt was followed.
    """
    mean, std = images.mean((2, 3)), images.std((2, 3))
    mean_t, std_t = teacher_images.mean((2, 3)), teacher_images.std((2, 3))
    return -float(((mean - mean_t).abs() + (std - std_t).abs()).mean())


PREVIEW_SCORES = Registry[PreviewScore](
    "preview score", "fewstep.preview_scores", __name__, lambda module: {"drift": module.drift}
)


def preview_score(name: str) -> PreviewScore:
    """The score that a recipe names.

    Raises:
        FewstepError: There is no such score, or it is written as code to import.
    """
    if ":" in name:
        raise ConfigError(
            f"preview.score: {name!r}: recipes do not import code; declare it as an entry point "
            f'NAME = "{name}" of group fewstep.preview_scores in your package, and write NAME'
        )
    return PREVIEW_SCORES.get(name)
