"""Experiment trackers such as Weights & Biases or MLflow, by way of accelerate's adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fewstep.utils.errors import FewstepError

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
"""Names of `accelerate.tracking`, which are also those of the packages."""
_ONE_PICTURE = ("aim", "clearml")  # take one picture a name where the others take a list


class TrackerSink:
    """One tracker of `accelerate.tracking`; pictures go to those that take any."""

    def __init__(self, name: str, project: str = "fewstep", **settings: Any) -> None:
        """Looks for the tracker's package.

        Args:
            name: One of `TRACKERS`.
            project: Project or experiment that the run is filed under.
            settings: What else the tracker's own ``init`` takes, such as ``entity`` or ``tags``.

        Raises:
            FewstepError: The package is not installed.
        """
        if find_spec(name) is None:
            raise FewstepError(
                f"log.sinks: {name} is not installed; pip install {name}, "
                "or remove it from the list",
                code="missing-dependency",
            )
        self._name, self._project, self._settings = name, project, settings

    def open(self, folder: Path, config: Mapping[str, Any], *, after: int) -> None:
        """Starts the tracker and stores the recipe there."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's own logger wants to know which process this is
        kind = LOGGER_TYPE_TO_CLASS[self._name]
        place = [str(folder)] if kind.requires_logging_directory else []
        self._tracker = kind(self._project, *place, **self._settings)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(config))

    def write(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, Image]) -> None:
        """Logs one step."""
        if scalars:
            self._tracker.log(dict(scalars), step=step)
        if pictures and hasattr(self._tracker, "log_images"):
            one_each = self._name in _ONE_PICTURE
            values = {name: each if one_each else [each] for name, each in pictures.items()}
            self._tracker.log_images(values, step=step)

    def close(self) -> None:
        """Ends the tracker's run."""
        self._tracker.finish()


SINKS = {name: partial(TrackerSink, name) for name in TRACKERS}
