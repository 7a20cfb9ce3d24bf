"""SIGTERM and SIGINT: finish the step, save, exit with code 0; the second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A run that was asked to stop and has saved; left alone, the process ends with exit code 0."""

    def __init__(self, step: int) -> None:
        """Keeps the step that was saved."""
        super().__init__(0)
        self.step = step


class Interrupts:
    """Context in which the first signal is only noted; outside the main thread it does nothing.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Takes what tells the person that the signal was heard."""
        self.requested = False
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = True
        name = signal.Signals(number).name
        self._say(f"{name}: finishing this step, then saving; send it again to stop at once")
