"""One process at a time in a folder, told apart from what a killed process left there.

The lock itself is the system's (`filelock`: flock, or its like on other systems), which ends with
the process that holds it, however that ends. A file beside it says who holds it. File systems of
clusters do not all carry such locks from one machine to another, so another machine's file is
believed as well, until somebody who knows better removes it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from fewstep.utils.disk import writing
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import made, read_json, write_json

LOCK, HOLDER = ".lock", ".lock.json"
_SINCE = "%Y-%m-%d %H:%M:%S %z"
_MOMENT = 0.5  # seconds


@contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """Context in which no other process may lock the folder, which is made if need be.

    Nothing is left behind but after SIGKILL or a loss of power. What such a process left is taken
    over if it ran on this machine, or if Slurm has put its job back into the queue since.

    Yields:
        A note on the process that a lock was taken over from, for people; None: there was none.

    Raises:
        FewstepError: Another process holds the lock, perhaps one on another machine.
        WriteFailed: The folder cannot be written.
    """
    with made(folder):
        lock, file = _acquire(folder), folder / HOLDER
        try:
            before = read_json(file)
            if before and not _has_ended(before):
                raise FewstepError(
                    f"{folder}: in use by {_who(before)}, which cannot be asked from this machine; "
                    f"if it has ended, remove {file}",
                    code="no-access",
                )
            write_json(file, _own())
            try:
                yield f"{_who(before)} was killed; its lock is taken over" if before else None
            finally:
                file.unlink(missing_ok=True)
        finally:
            with suppress(OSError):  # the name first: whoever waits then sees that it is gone
                (folder / LOCK).unlink()
            lock.release()


def at_work(folder: Path) -> bool | None:
    """Whether a process holds the folder, as far as it can be told without taking the lock.

    Returns:
        None: one on another machine did, which cannot be asked from here.
    """
    holder = read_json(folder / HOLDER)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return None
    import psutil

    try:
        since = datetime.strptime(str(holder["since"]), _SINCE).timestamp()
        process = psutil.Process(int(holder["pid"]))
        # A process that began later has only inherited the number.
        return process.create_time() <= since + 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def _acquire(folder: Path) -> BaseFileLock:
    """Takes the system's lock; where the file system has none, that of a file's existence."""
    lock: BaseFileLock = FileLock(folder / LOCK, timeout=0)
    try:
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            lock = SoftFileLock(folder / LOCK, timeout=0)
            with writing(folder):
                lock.acquire()
    except Timeout as error:
        if not (folder / HOLDER).exists():
            time.sleep(_MOMENT)  # in which the other process says who it is
        holder = _who(read_json(folder / HOLDER) or {})
        raise FewstepError(
            f"{folder}: in use by {holder}; wait for it, or choose another folder",
            code="no-access",
        ) from error
    return lock


def _own() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime(_SINCE),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process that left its name has ended; its lock is ours already."""
    own = _own()
    if holder.get("host") == own["host"]:
        return True
    requeued = isinstance(holder.get("slurm_restarts"), int) and (
        holder["slurm_restarts"] < own["slurm_restarts"]
    )
    return requeued and holder.get("slurm_job") == own["slurm_job"] is not None


def _who(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')} (since {holder.get('since')})"
