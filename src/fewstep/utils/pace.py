"""Notes about how far something is, where it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Note: TypeAlias = Callable[[str], None]
_SECONDS = 5.0


def silent(message: str) -> None:
    """Tells nobody."""


class Pace:
    """Tells how far something is, no more often than every few seconds."""

    def __init__(self, note: Note) -> None:
        """Begins now; `note` gets the messages."""
        self._note = note
        self._began = self._told = time.monotonic()

    def say(self, message: Callable[[], str]) -> None:
        """Says a message, which is not even made where it would come too soon."""
        now = time.monotonic()
        if now - self._told > _SECONDS:
            self._told = now
            self._note(message())

    def say_done(self, done: int, count: int, what: str) -> None:
        """Says that `done` of `count` are done, and how many a second."""
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self.say(lambda: f"{done:,} of {count:,} {what}, {rate:,.1f} a second")
