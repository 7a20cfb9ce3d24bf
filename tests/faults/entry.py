"""The program's entry point, started often: in forks of a process that has imported everything.

`Entry` is the near side. The far side is this file as a program: it reads requests, a line of JSON
each, and answers each with a line once the fork has ended.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAVY = (
    "fewstep.config", "fewstep.train", "fewstep.inference.load", "fewstep.inference.sample",
    "fewstep.evaluation", "fewstep.planning", "fewstep.data.precompute", "fewstep.report",
    "diffusers", "transformers", "peft",
)  # fmt: skip
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
"""What the program sets before it imports them, which it has not done here."""
ADDRESS_SPACE = 12 * 2**30  # bytes; libraries alone map several


@dataclass(frozen=True)
class Result:
    """How a command line ended.

    Attributes:
        code: Exit code, minus the signal's number where one ended it; None: ended for taking too
            long.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        seconds: What it took.
        peak_gb: Largest resident memory, GB.
        folder: Its working folder.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    peak_gb: float
    folder: Path

    @property
    def outcome(self) -> str:
        """One word for the table of counts."""
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        return {0: "accepted", 2: "refused"}.get(self.code, f"exit {self.code}")


class Entry:
    """A process that runs command lines of the program in forks of itself.

    Args:
        home: Folder for what the program keeps of its own, and for its output.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        environment = {
            **os.environ,
            "HOME": str(home),
            "FEWSTEP_CACHE": str(home / "cache"),
            "HF_HOME": str(home / "hub"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **QUIET,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.entry"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        timeout: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs one command line in a folder.

        Args:
            argv: The words after ``fewstep``.
            folder: Its working folder.
            timeout: Seconds after which it is killed.
            environment: Further variables.
        """
        out, err = self.home / "stdout", self.home / "stderr"
        request = {
            "argv": [os.fsencode(word).hex() for word in argv],
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "timeout": timeout,
            "environment": dict(environment or {}),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = [file.read_text("utf-8", errors="replace") for file in (out, err)]
        return Result(answer["code"], *texts, answer["seconds"], answer["peak_gb"], folder)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait(10)


def _serve() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_be, args=(request,))
    process.start()
    code: int | None = None
    while True:  # waited for here, as wait4 alone tells what memory it took
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - started > request["timeout"]:
            os.killpg(process.pid, signal.SIGKILL)
            _, _, used = os.wait4(process.pid, 0)
            break
        time.sleep(0.005)
    seconds, peak = time.monotonic() - started, used.ru_maxrss * 1024
    return {"code": code, "seconds": seconds, "peak_gb": peak / 1e9}


def _be(request: dict[str, Any]) -> None:
    """The fork: becomes the command line."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for stream, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], write),
        (2, request["err"], write),
    ):
        os.dup2(os.open(path, flags, 0o644), stream)
    from fewstep.cli import main

    sys.argv = ["fewstep", *(os.fsdecode(bytes.fromhex(word)) for word in request["argv"])]
    main()


if __name__ == "__main__":
    _serve()
