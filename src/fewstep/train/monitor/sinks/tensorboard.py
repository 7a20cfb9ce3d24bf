"""TensorBoard: event files in the run's folder ``tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from fewstep.utils.errors import FewstepError


class TensorBoardSink:
    """Scalars and pictures for ``tensorboard --logdir RUN``."""

    def __init__(self) -> None:
        """Looks for the package.

        Raises:
            FewstepError: It is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FewstepError(
                "log.sinks: tensorboard is not installed; pip install 'fewstep[tensorboard]', "
                "or remove it from the list",
                code="missing-dependency",
            ) from error
        self._writer_class = SummaryWriter

    def open(self, folder: Path, config: Mapping[str, Any], *, after: int) -> None:
        """Starts an event file, in which later steps replace those of earlier files."""
        self._writer = self._writer_class(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, Image]) -> None:
        """Adds one step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, picture in pictures.items():
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


SINKS = {"tensorboard": TensorBoardSink}
