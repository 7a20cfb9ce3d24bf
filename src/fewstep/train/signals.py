"""SIGTERM and SIGINT: finish the step, save, exit with code 0; the second one stops at once.

A process of a job may hear one request twice: Slurm signals every process of a job, torchrun among
them, and torchrun passes on what it hears.
"""

from __future__ import annotations

import os
import signal
import threading
import time
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

    def __init__(self, say: Callable[[str], None], *, echo: float = 0.0) -> None:
        """Nothing was heard yet.

        Args:
            say: Tells the person that the signal was heard.
            echo: Seconds in which another signal is the same request.
        """
        self.requested = False
        self._say = say
        self._echo = echo
        self._heard_at = 0.0
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
        if self.requested and time.monotonic() - self._heard_at < self._echo:
            return
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested, self._heard_at = True, time.monotonic()
        name = signal.Signals(number).name
        self._say(f"{name}: finishing this step, then saving; send it again to stop at once")
