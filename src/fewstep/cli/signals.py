"""What a signal does outside training, which has handlers of its own: one line, and the end.

It unwinds like an exception, so that files which are being written vanish and those that were there
stay. The exit code is 128 plus the signal's number, as shells have it: 130 for SIGINT, 143 for
SIGTERM. A second signal ends the process at once, and so do ten seconds: libraries in other
languages may swallow the exception.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from fewstep.utils.ranks import rank

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


GRACE = 10.0  # seconds
_received: list[int] = []


class Interrupted(SystemExit):
    """A signal asked the program to end."""


def end_on_signals() -> None:
    """Lets signals end the program in order; those that are ignored (nohup) stay so.

    It is called before anything else is imported, which takes a while.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    sys.unraisablehook = _end_anyway


def exit_code() -> int | None:
    """Exit code by the signal that was received; None: none was."""
    return 128 + _received[0] if _received else None


def leave_signals() -> None:
    """Gives signals back to the system: the work is done, and Python is shutting down."""
    for number in SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    leave_signals()
    if rank() == 0:
        line = f"{signal.Signals(number).name}: stopped; what was finished is kept\n"
        _tell(line.encode())
    _received.append(number)
    last = threading.Timer(GRACE, os._exit, [128 + number])
    last.daemon = True
    last.start()
    raise Interrupted(128 + number)


def _tell(line: bytes) -> None:
    """Writes to stderr past its buffer, which may be in the middle of a line; it may be closed."""
    with suppress(OSError):
        os.write(2, line)


def _end_anyway(unraisable: sys.UnraisableHookArgs) -> None:
    """Ends the program where the exception was raised in a destructor, which would swallow it."""
    if isinstance(unraisable.exc_value, Interrupted):
        os._exit(int(unraisable.exc_value.code or 1))
    sys.__unraisablehook__(unraisable)
