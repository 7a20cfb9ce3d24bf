"""Where the measurements and pictures of a run go: one file a sink, more by entry points.

A recipe names sinks under ``log.sinks``; metrics.jsonl is always written. A package adds one with::

    [project.entry-points."fewstep.sinks"]
    my_sink = "my_package:MySink"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from fewstep.config import ConfigError
from fewstep.config.secrets import from_environment, refuse_secrets
from fewstep.utils.registry import Registry


class Sink(Protocol):
    """Takes what a run measures and draws; only the first of several processes calls it.

    It is made with the settings that stand beside its name in the recipe, before anything is
    written: missing packages are to be reported then, and nothing is to be opened yet. An error in
    `open` ends the run; one in `write` or `close` is shown once, and the run goes on.
    """

    def open(self, folder: Path, config: Mapping[str, Any], *, after: int) -> None:
        """Starts to take steps.

        Args:
            folder: The run's folder, which exists.
            config: The recipe as plain values, one for each dotted key.
            after: Last step that stays of an interrupted run; later ones come again. -1: none.
        """

    def write(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, Image]) -> None:
        """Takes what belongs to one step; a step may come in several calls.

        Args:
            step: Finished iterations.
            scalars: Name, such as ``loss/dm`` -> value.
            pictures: Name, such as ``preview`` -> RGB picture.
        """

    def close(self) -> None:
        """Ends a run that was opened, whichever way it ended."""


SINKS: Registry[Callable[..., Sink]] = Registry(
    "sink", "fewstep.sinks", package=__name__, members=lambda module: getattr(module, "SINKS", {})
)
"""Name -> what makes a sink from its settings; a file of this package has its own in ``SINKS``."""


def make_sink(name: str, settings: Mapping[str, Any]) -> Sink:
    """A sink as a recipe lists it; nothing is opened.

    Raises:
        FewstepError: There is no such sink (names the nearest), its package is not installed, it
            does not take these settings, or a secret is among them.
    """
    place = f"log.sinks: {name}"
    refuse_secrets(settings, place)
    try:
        return SINKS.get(name)(**from_environment(settings, place))
    except TypeError as error:
        raise ConfigError(f"log.sinks: {name}: {error}") from error
