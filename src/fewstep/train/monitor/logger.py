"""What a run reports: measurements and pictures to its sinks, and progress to the terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from fewstep.config import Recipe
from fewstep.train.monitor.sinks import Sink, make_sink
from fewstep.train.monitor.sinks.metrics_file import METRICS, MetricsFile
from fewstep.utils.errors import FewstepError
from fewstep.utils.hardware import peak_memory_gb
from fewstep.utils.terminal import tell

_PAUSE = 10.0  # seconds between lines where there is no terminal to draw a bar on


class SteadyConsole(Console):
    """A console that falls silent when its pipe closes (`| head`); rich's ends the program."""

    def on_broken_pipe(self) -> None:
        """Nobody reads any more."""
        self.quiet = True


class Logger:
    """Hands the measurements of each step to the sinks and shows progress.

    Attributes:
        pending: What was measured since the last logged step.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, console: Console) -> None:
        """Makes the sinks; nothing is opened yet.

        Args:
            folder: The run's folder.
            recipe: How often to log, and where to.
            console: Where progress is shown.

        Raises:
            FewstepError: A sink that does not exist, or whose package is not installed.
        """
        self._folder = folder
        self._recipe = recipe
        self._total = recipe.train.steps
        self._console = console
        self._sinks: dict[str, Sink] = {METRICS: MetricsFile()}
        for each in recipe.log.sinks:
            self._sinks[each.name] = make_sink(each.name, each.settings)
        self._failed: Counter[str] = Counter()
        self.pending: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._noted_at = float("-inf")

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Context in which the steps after `step` can be recorded.

        What an interrupted run recorded of later steps is dropped; step 0 is recorded anew.

        Raises:
            FewstepError: A sink cannot be opened.
        """
        config, after = _dotted(self._recipe.model_dump(mode="json")), step if step > 0 else -1
        self._bar = _progress(self._console)
        self._task = self._bar.add_task("", total=self._total, completed=step, text="")
        with ExitStack() as stack:
            stack.callback(self._count_failures)
            for name, sink in self._sinks.items():
                try:
                    sink.open(self._folder, config, after=after)
                except Exception as error:  # whatever a package raises
                    raise FewstepError(
                        f"log.sinks: {name} cannot be opened: {_first_line(error)}",
                        code="no-access",
                    ) from error
                stack.callback(self.attempt, name, sink.close)
            stack.callback(self._draw_bar, self._bar.stop)
            self._draw_bar(self._bar.start)
            yield

    def _draw_bar(self, change: Callable[[], None]) -> None:
        """Starts or ends the bar; a terminal that has closed is no error."""
        with suppress(OSError):
            change()

    def note(self, text: str) -> None:
        """Prints one line above the bar; a terminal that has closed does not stop the run."""
        with suppress(OSError, RuntimeError):  # the latter: a signal came in the middle of a write
            tell(self._console, text)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one step's measurements; a logged step gets the latest of each since the last."""
        self.pending |= metrics
        self._show_progress(step)
        if step % self._recipe.log.every and step != self._total:
            return
        for name, sink in self._sinks.items():
            self.attempt(name, sink.write, step, self.pending, {})
        self.pending = {}

    def show(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Hands pictures to the sinks."""
        for name, sink in self._sinks.items():
            self.attempt(name, sink.write, step, {}, pictures)

    def attempt(self, name: str, function: Callable[..., object], *arguments: Any) -> None:
        """Calls what a run can do without; an error is told once, counted, and stops nothing.

        Args:
            name: What it is: a sink, or the kind of file that is written.
            function: What to call.
            arguments: What with.
        """
        try:
            function(*arguments)
        except Exception as error:  # whatever a package raises
            self._failed[name] += 1
            if self._failed[name] == 1:
                self.note(f"log: {name} failed: {_first_line(error)}; the run goes on")

    def _count_failures(self) -> None:
        for name, count in self._failed.items():
            if count > 1:
                self.note(f"log: {name} failed {count} times in all")

    def _show_progress(self, step: int) -> None:
        self._shown |= self.pending  # the student's figures stay in sight where it does not move
        text = summary(self._shown)
        self._bar.update(self._task, completed=step, text=text)
        has_bar = self._bar.live.is_started and self._console.is_terminal
        due = time.monotonic() - self._noted_at > _PAUSE or step == self._total
        if due and not has_bar:
            self._noted_at = time.monotonic()
            self.note(f"step {step}/{self._total}  {text}")


class SilentLogger(Logger):
    """Prints and writes nothing: the logger of every process but the first."""

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Context that opens nothing."""
        yield

    def note(self, text: str) -> None:
        """Does nothing."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def show(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Does nothing."""


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
    """Peak memory so far in 1e9 bytes: the accelerator's, or without one this process's."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory_gb()


def _dotted(value: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data as dotted key -> number, text or None."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _dotted(inner, f"{path}.{key}" if path else str(key))
    return flat


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Bar(Progress):
    """Bar, steps and time left on one line, figures below: neither takes the other's room."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from the top down."""
        yield from super().get_renderables()
        yield from (Text(task.fields["text"]) for task in self.tasks if task.fields["text"])


def _progress(console: Console) -> Progress:
    columns = BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn()
    return _Bar(*columns, console=console, disable=not console.is_terminal)
