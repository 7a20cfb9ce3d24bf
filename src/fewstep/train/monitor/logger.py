"""What a run says: metrics.jsonl always, TensorBoard on request, and progress to watch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.config import LogRecipe
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_text
from fewstep.utils.hardware import peak_memory_gb

METRICS = "metrics.jsonl"
_PAUSE = 10.0  # seconds between lines where there is no terminal to draw a bar on


class Log:
    """Takes a step's figures and puts them where they are wanted.

    Attributes:
        pending: What was measured since the last line of metrics.jsonl.
    """

    def __init__(self, folder: Path, recipe: LogRecipe, *, total: int, console: Console) -> None:
        """Nothing is opened yet, but TensorBoard must be there if it is wanted.

        Args:
            folder: The run's folder.
            recipe: How often, and where to.
            total: Steps of the whole run.
            console: Where progress is shown.
        """
        self._folder = folder
        self._every = recipe.every
        self._console = console
        self._total = total
        self._tensorboard = _tensorboard() if recipe.tensorboard else None
        self.pending: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._said = float("-inf")

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Context in which steps can be recorded, from the one after `step` on.

        Lines of later steps, left by a run that was cut off, are dropped; step 0 is recorded anew.
        """
        truncate(self._folder / METRICS, step if step > 0 else -1)
        self._bar = _progress(self._console)
        self._task = self._bar.add_task("", total=self._total, completed=step, text="")
        with ExitStack() as stack:
            file = (self._folder / METRICS).open("a", encoding="utf-8")
            self._file = stack.enter_context(file)
            self._writer = self._tensorboard and stack.enter_context(
                self._tensorboard(self._folder / "tensorboard", purge_step=step + 1)
            )
            stack.enter_context(self._bar)
            yield

    def note(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one step's measurements; a line holds the latest of each since the last line."""
        self.pending |= metrics
        self._show(step)
        if step % self._every and step != self._total:
            return
        self._file.write(json.dumps({"step": step, **self.pending}) + "\n")
        self._file.flush()  # the system keeps it from here on, even if this process is killed
        if self._writer:
            for name, value in self.pending.items():
                self._writer.add_scalar(name, value, step)
        self.pending = {}

    def _show(self, step: int) -> None:
        self._shown |= self.pending  # the student's figures stay in sight where it does not move
        text = summary(self._shown)
        self._bar.update(self._task, completed=step, text=text)
        quiet = self._bar.live.is_started and self._console.is_terminal
        if not quiet and (time.monotonic() - self._said > _PAUSE or step == self._total):
            self._said = time.monotonic()
            self.note(f"step {step}/{self._total}  {text}")


class NoLog(Log):
    """Says and writes nothing: what all processes have but the first."""

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Context that opens nothing."""
        yield

    def note(self, text: str) -> None:
        """Nothing."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""


def summary(metrics: Mapping[str, float]) -> str:
    """The figures worth a glance, in one line."""
    losses = [
        f"{name.removeprefix('loss/')} {value:.3g}"
        for name, value in metrics.items()
        if name.startswith("loss/")
    ]
    rest = [
        (f"{metrics[key]:{form}} {unit}")
        for key, form, unit in (
            ("images_per_second", ".1f", "images/s"),
            ("evaluations", ",.0f", "evaluations"),
            ("memory_gb", ".1f", "GB"),
            ("preview/score", ".4f", "preview score"),
        )
        if key in metrics
    ]
    return "  ".join(losses + rest)


def memory_gb() -> float:
    """Most memory used so far: the accelerator's if there is one, else this process's, in 1e9 B."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory_gb()


def last_step(file: Path) -> int:
    """Step of the last whole line of metrics.jsonl; 0 without one."""
    return max((line["step"] for line in _lines(file)), default=0)


def truncate(file: Path, step: int) -> None:
    """Drop the lines of later steps, and a line that was cut off in the middle."""
    kept = [line for line in _lines(file) if line["step"] <= step]
    write_text(file, "".join(json.dumps(line) + "\n" for line in kept))


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    found = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        found.append(line)
    return found


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FewstepError(
            "log.tensorboard: not installed; pip install 'fewstep[tensorboard]' or set it to false",
            code="missing-dependency",
        ) from error
    return SummaryWriter
