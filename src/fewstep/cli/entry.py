"""One command line from its words to its exit code.

0: done; 2: something the user can mend, told in one line on stderr; 1: a bug (with its traceback)
or a check that failed; 128 + its number: ended by a signal, see `fewstep.cli.signals`. After a 2,
with ``--json``, stdout holds ``{"error": {"code": ..., "message": ...}}``; the codes are listed in
`fewstep.utils.errors`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer

from fewstep.cli.commands import app
from fewstep.cli.console import complain, note, say_json
from fewstep.cli.signals import exit_code, leave_signals
from fewstep.utils.disk import advice, system_error
from fewstep.utils.errors import Code, FewstepError
from fewstep.utils.ranks import rank
from fewstep.utils.terminal import Printable, one_line

# typer carries its own click, whose classes it exports only in part.
ClickError: Any = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)
EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # of CUDA and of the CPU, as torch says
USER = 2
ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}  # the new name and the old one
_BUSY = 0.8  # cores that others use, from which they are at work
PATIENCE = 5.0  # seconds in which a job's first process says what is wrong


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; unexpected exceptions pass through."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if "--help" not in given:  # which computes nothing, and is to be quick
        _prepare()
    command = typer.main.get_command(app)
    try:
        _refuse_odd_words(given)
        code = command.main(args=given, prog_name="fewstep", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (typer.Abort, KeyboardInterrupt):  # run() without main(), as from Python
        note("interrupted")
        return 128 + signal.SIGINT
    except Exception as error:
        if (ended := exit_code()) is not None:  # what a library made of the signal's exception
            return ended
        told = _explain(error)
        if told is None or os.environ.get("FEWSTEP_DEBUG"):
            raise
        _refuse(*told, as_json="--json" in given)
        return USER


def _refuse_odd_words(given: Sequence[str]) -> None:
    """Refuses words that no file can be called, and nothing where something is to be given.

    Raises:
        FewstepError: There is such a word.
    """
    for before, word in pairwise(["fewstep", *given]):
        if "\0" in word or (not word.isascii() and word != word.encode(errors="replace").decode()):
            problem = f"{word}: holds a character that is not UTF-8 text"
        elif not word.strip() and before != "--prompt":
            problem = f"fewstep: nothing is given after {before}"
        elif word.startswith("--") and word.endswith("=") and word.count("=") == 1:
            problem = f"fewstep: nothing is given after {word.rstrip('=')}"
        else:
            continue
        raise FewstepError(f"{problem}; see fewstep --help", code="usage")


def _explain(error: Exception) -> tuple[str, Code] | None:
    """Message and code of an error that the user can mend; None: the error is a bug."""
    if isinstance(error, FewstepError):
        return str(error), error.code
    if isinstance(error, ClickError):
        context = getattr(error, "ctx", None)
        place = context.command_path if context else "fewstep"
        # It names the nearest valid word itself.
        return f"{place}: {error.format_message().rstrip('.?')}; see {place} --help", "usage"
    if number := system_error(error):
        # A name says that it is about a path; without one, only what no program can help counts.
        where = getattr(error, "filename", None) or ("disk" if number in EXHAUSTED else None)
        code: Code = "missing-file" if number == errno.ENOENT else "no-access"
        return (f"{where}: {advice(number)}", code) if where else None
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    ):
        needs = "take a smaller batch or size; `fewstep plan RECIPE` says what fits"
        return (
            f"out of memory ({(str(error).strip() or 'of the machine').splitlines()[0]}); {needs}",
            "out-of-memory",
        )
    return None


def _prepare() -> None:
    """Settings that libraries read from the environment when they are imported; yours win.

    Their hints are kept off stderr, and their progress bars where nobody looks. Threads that wait
    for each other spin, as torch has it, unless other programs are busy here already: then spinning
    makes torch several times slower, and on idle cores sleeping does. On CUDA, memory grows by
    segments: batches of changing sizes otherwise leave holes that nothing fits into.
    """
    settings = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    if _others_are_busy():
        settings["OMP_WAIT_POLICY"] = "passive"
    if not os.environ.keys() & ALLOCATOR:
        settings |= dict.fromkeys(ALLOCATOR, "expandable_segments:True")
    if not sys.stderr.isatty():
        settings["TQDM_DISABLE"] = "1"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    own = logging.getLogger("fewstep")
    if not own.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(Printable())
        own.addHandler(handler)


def _others_are_busy() -> bool:
    """Whether other programs are at work now. The load average alone remembers what is over."""
    if not hasattr(os, "getloadavg") or os.getloadavg()[0] <= _BUSY:
        return False
    import psutil

    return psutil.cpu_percent(interval=0.1) / 100 * (os.cpu_count() or 1) > _BUSY


def _refuse(message: str, code: Code, *, as_json: bool) -> None:
    """One line on stderr, and an object on stdout for programs.

    Of several processes the first one tells what is wrong with all, and that ends the others;
    whoever is left after a while has an error of its own.
    """
    line, number = one_line(message), rank()
    if number:
        time.sleep(PATIENCE)
    complain(f"process {number}: {line}" if number else line)
    if as_json and not number:
        say_json({"error": {"code": code, "message": line}})


def main() -> None:
    """Entry point of the ``fewstep`` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than we
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run()
    except BrokenPipeError:  # whoever read it, such as head, has gone
        code = 0
    leave_signals()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # or a terminal that has closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
