"""Real pictures from a folder: ``evaluate.references: folder:PATH``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

_BATCH = 16
_KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Folder:
    """All pictures in a folder and below, in order of their paths."""

    paired = False

    def __init__(self, place: str) -> None:
        """Looks which files there are.

        Raises:
            FewstepError: Fewer than two.
        """
        folder = resolve(place)
        files = sorted(folder.rglob("*")) if folder.is_dir() else []
        self.files = [file for file in files if file.suffix.lower() in _KINDS]
        if len(self.files) < 2:
            raise FewstepError(
                f"evaluate.references: {folder} holds {len(self.files)} pictures; a folder with "
                f"two or more of {', '.join(sorted(_KINDS))} is needed",
                code="missing-file",
            )

    def draw(self, prompts: Sequence[str], seed: int, size: tuple[int, int]) -> Iterator[Tensor]:
        """All of them, cut to the wanted shape around their middle, then resized."""
        for start in range(0, len(self.files), _BATCH):
            yield torch.stack([_read(file, size) for file in self.files[start : start + _BATCH]])


def _read(file: Path, size: tuple[int, int]) -> Tensor:
    """One picture [3, H, W] in [0, 1]."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise FewstepError(f"{file}: cannot be read as a picture", code="damaged") from error
    fitted = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1)


load = Folder
