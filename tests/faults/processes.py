"""The command line in real processes of its own, which may be killed or sent signals.

They are forked from a server that has imported everything and computed nothing, so that a hundred
of them take minutes. What they say goes to files.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0  # seconds; a busy machine is slow, not wrong
IMPORTED = [  # by the server; by name, since it does not see the tests' own folder
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "fewstep.cli.entry",
    "fewstep.evaluation",
    "fewstep.inference.load",
    "fewstep.report",
    "fewstep.train",
    "fewstep.toyworld.plugin",
    "peft",
    "torchao.quantization",
]
SERVER = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass
class Command:
    """One command line at work, or done."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    def signal(self, number: int) -> None:
        """Sends a signal; one that has ended takes no harm."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Exit code; -9 after SIGKILL."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"it hangs: {self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        """All that it wrote to stderr until now."""
        return self.stderr.read_text(encoding="utf-8", errors="replace")


def start(
    arguments: Sequence[object],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Command:
    """Starts ``fewstep ARGUMENTS``.

    Args:
        arguments: Words of the command line.
        log: Stem of the files that take what it says.
        environment: Variables added to those of this process.
        before: Called in the new process first.
    """
    out, err = (log.with_name(log.name + end) for end in (".out", ".err"))
    err.unlink(missing_ok=True)
    words = [str(word) for word in arguments]
    target, given = _command, (words, out, err, dict(environment or {}), before)
    process = _server().Process(target=target, args=given, daemon=True)  # ends with the tests
    process.start()
    wait_for(err.exists, process.is_alive)
    return Command(process, out, err)


def run(arguments: Sequence[object], log: Path, **settings: Any) -> tuple[int, str]:
    """Exit code and stderr of ``fewstep ARGUMENTS``; arguments are those of `start`."""
    command = start(arguments, log, **settings)
    return command.wait(), command.said()


@cache
def _server() -> Any:
    """The server, started; one torch thread, so that rounding is equal and forks are quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SERVER.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def start_job(
    arguments: Sequence[object],
    log: Path,
    *,
    ranks: int,
    before: Callable[[], None] | None = None,
) -> list[Command]:
    """Starts one process, or several that work together as if torchrun had started them."""
    if ranks == 1:
        return [start(arguments, log, before=before)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    numbers = [{"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)]
    return [
        start(
            arguments,
            log.with_name(f"{log.name}-{own['RANK']}"),
            environment={**shared, **own, "WORLD_SIZE": str(ranks)},
            before=before,
        )
        for own in numbers
    ]


def _command(
    words: list[str],
    out: Path,
    err: Path,
    environment: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    import diffusers
    import transformers

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as before Python has begun
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.environ.update(environment)
    # Another test may have started the server, without `SERVER`.
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if before is not None:
        before()
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = ["fewstep", *words]
    from fewstep.cli import main

    main()


def wait_for(condition: Callable[[], bool], alive: Callable[[], bool]) -> bool:
    """Waits until something is true; False if the processes ended first."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if not alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def copied(run_folder: Path, to: Path) -> Path:
    """A copy of a run folder in place of whatever was there."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(run_folder, to))
