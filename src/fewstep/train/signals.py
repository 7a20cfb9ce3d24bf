"""Signals while training: finish the step, save, exit with code 0; a second one stops at once.

SIGINT is Ctrl-C, SIGTERM what schedulers send, SIGUSR1 what Slurm sends on request some time before
the end, SIGHUP a terminal that closes (unless it is ignored, as under nohup).

With several processes one request may arrive twice: Slurm signals every process of a job, torchrun
among them, and torchrun forwards the signal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # Windows has the first two
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_HANGUP = getattr(signal, "SIGHUP", None)


class Stopped(SystemExit):
    """A run was asked to stop and has saved; unless caught, the process exits with code 0.

    Attributes:
        step: The step that was saved.
    """

    def __init__(self, step: int) -> None:
        """Takes the step that was saved."""
        super().__init__(0)
        self.step = step


class Interrupts:
    """Context in which the first signal only sets a flag; outside the main thread it does nothing.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self, note: Callable[[str], None], *, repeat_window: float = 0.0) -> None:
        """Installs nothing yet.

        Args:
            note: Prints that the signal has arrived.
            repeat_window: Seconds after the first signal in which others are the same request.
        """
        self.requested = False
        self._note = note
        self._repeat_window = repeat_window
        self._requested_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle)
                for number in _SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN or number != _HANGUP
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._requested_at < self._repeat_window:
            return
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested, self._requested_at = True, time.monotonic()
        name = signal.Signals(number).name
        self._note(f"{name}: finishing this step, then saving; send it again to stop at once")
