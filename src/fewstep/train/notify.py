"""A message to an address of the user's when a run has ended, well or not."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fewstep.config import Recipe
from fewstep.config.secrets import HIDDEN, from_environment, refuse_odd_address
from fewstep.config.strict import ConfigError
from fewstep.utils.errors import FewstepError
from fewstep.utils.ranks import rank
from fewstep.utils.terminal import one_line

TIMEOUT = 10.0
"""Seconds after which an address counts as not to be reached."""
_KEY = "log.notify"
_logger = logging.getLogger("fewstep")


class Ending(Protocol):
    """What a message needs to know of a run, see `Trainer`."""

    recipe: Recipe
    folder: Path
    completed: int
    stopped: bool


def address(recipe: Recipe) -> str | None:
    """Where messages go; None: nowhere, or no longer known.

    Raises:
        ConfigError: The recipe names a variable that is not set, or that holds no address.
    """
    if recipe.log.notify in (None, HIDDEN):
        return None
    found = str(from_environment(recipe.log.notify, _KEY))
    try:
        refuse_odd_address(found)
    except ValueError as error:
        raise ConfigError(f"{_KEY}: the address {error}") from error
    return found


@contextmanager
def notified(run: Ending) -> Iterator[Callable[[], None]]:
    """Context that tells how a run has ended. What cannot be delivered is one line of warning.

    Nothing is sent of a run that was refused before it began.

    Yields:
        What to call when the run has begun.
    """
    if run.recipe.log.notify == HIDDEN and rank() == 0:
        _logger.warning(
            "%s: run folders do not keep the address; give it again: --set %s=URL", _KEY, _KEY
        )
    to, begun = address(run.recipe), []
    if to is None or rank():
        yield lambda: None
        return
    try:
        yield lambda: begun.append(True)
    except Exception as error:
        if begun or not isinstance(error, FewstepError):
            what = one_line(str(error) or type(error).__name__, at_most=500)
            send(to, _message(run, "failed", what))
        raise
    send(to, _message(run, "stopped" if run.stopped else "finished"))


def _message(run: Ending, event: str, error: str = "") -> dict[str, Any]:
    steps, name = run.recipe.train.steps, run.folder.name
    text = f"fewstep: {name} {event} after step {run.completed} of {steps}"
    text += f": {error}" if error else ""
    return {
        "event": event,
        "run": name,
        "step": run.completed,
        "steps": steps,
        "error": error or None,
        "text": text,  # what Slack, Mattermost and Teams show
        "content": text,  # what Discord shows
    }


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address than the user's gets nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(to: str, content: dict[str, Any]) -> bool:
    """Posts an object as JSON; returns whether it was taken. No error names the address."""
    request = urllib.request.Request(
        to,
        data=json.dumps(content).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "fewstep"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
            return True
    except OSError as error:  # HTTP errors and timeouts are such
        why = one_line(str(getattr(error, "reason", None) or error)).replace(to, HIDDEN)
    except http.client.HTTPException as error:
        why = f"it answers no HTTP ({type(error).__name__})"
    _logger.warning("%s: the message was not delivered: %s", _KEY, why)
    return False
