"""The training loop: `Trainer` goes through a run step by step, `distill` from start to end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console

from fewstep.config import Recipe
from fewstep.config.shipped import CONFIG
from fewstep.core.noise import Draws
from fewstep.train.checkpoint.manager import PREVIEWS, starting_point
from fewstep.train.determinism import deterministic
from fewstep.train.distributed import (
    ProcessGroup,
    connection_lost,
    init_distributed,
    is_connection_lost,
)
from fewstep.train.monitor.logger import SteadyConsole, memory_gb
from fewstep.train.notify import notified
from fewstep.train.optim import NonFiniteError
from fewstep.train.saving import finish, is_best, save
from fewstep.train.signals import Interrupts, Stopped
from fewstep.train.sizes import at_size_of
from fewstep.train.state import Run as RunState
from fewstep.train.state import build, check, restore
from fewstep.train.step import Batch, iteration, samples_of
from fewstep.train.watch import (
    averaged_student,
    diverged,
    ends_early,
    explained,
    judge,
    look,
    newest,
    refuse_unsound_teacher,
)
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_text
from fewstep.utils.hardware import denormals_flushed
from fewstep.utils.resources import expand

_ECHO = 10.0  # seconds in which Slurm's signal and the same one by way of torchrun have come


class Trainer:
    """A run from where it is to its last step: a context manager that is iterated.

        with Trainer(recipe, folder, resume=True) as trainer:
            for step, metrics in trainer:
                ...

    Entering loads the model and, with `resume`, the newest checkpoint. Checkpoints, previews and
    health measurements happen when the recipe says so. Leaving saves what is not saved yet; after
    an exception nothing is saved, and the newest checkpoint is what the run goes on from.

    SIGINT and SIGTERM end the iteration after the present step, which is saved; a second signal
    ends the process.

    Attributes:
        completed: Finished iterations.
        stopped: Whether a signal has ended it.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | Path,
        *,
        resume: bool = False,
        resume_from: int | None = None,
        console: Console | None = None,
    ) -> None:
        """Nothing is read or written before the context is entered.

        Args:
            recipe: What to do.
            folder: Run folder; without `resume` it must hold no checkpoints.
            resume: Continue from the newest sound checkpoint, bitwise as if never stopped. An empty
                folder, and a run cut off before its first checkpoint, start at step 0.
            resume_from: Go back to the checkpoint of this step. Later ones are set aside in a
                folder of their own. Rates and settings of objectives may be others from there on.
            console: Where progress is shown; standard error by default.
        """
        self.recipe = recipe
        self.folder = expand(folder)
        self._resume = resume
        self._resume_from = resume_from
        self._console = console
        self._context = ExitStack()
        self._run: RunState | None = None
        self._interrupts: Interrupts | None = None
        self._started_at = 0
        self._start_recorded = False
        self.stopped, self.completed = False, 0

    def __enter__(self) -> Self:
        """Loads everything and opens the log.

        Raises:
            FewstepError: The run cannot start, or another process is at work in its folder;
                nothing was written.
        """
        recipe = self.recipe
        with ExitStack() as stack:
            stack.enter_context(denormals_flushed())
            processes = stack.enter_context(
                init_distributed(recipe.parallel, recipe.data, recipe.train.device)
            )
            console = self._console or SteadyConsole(stderr=True, quiet=not processes.first)
            try:
                run = _begin(
                    recipe,
                    self.folder,
                    stack,
                    console=console,
                    processes=processes,
                    resume=self._resume,
                    resume_from=self._resume_from,
                )
            except RuntimeError as error:
                if processes.size == 1 or not is_connection_lost(error):
                    raise
                raise connection_lost(error, "the run was being loaded") from error
            stack.enter_context(deterministic(recipe.train.deterministic))
            stack.enter_context(run.log.opened(run.step))
            echo = _ECHO if processes.size > 1 else 0.0
            self._interrupts = stack.enter_context(Interrupts(run.log.note, repeat_window=echo))
            self._run = run
            self.completed = self._started_at = run.step
            self._context = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Saves, unless an exception is under way, and releases the model."""
        run, self._run, self._interrupts = self.state, None, None
        try:
            if error is None and run.step > self._started_at:
                with _explaining_lost_connections(run):
                    finish(run)
        except BaseException as failure:
            self._context.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._context.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Iterates to the last step, `train.early_stop` or a signal; yields steps and metrics."""
        self._record_start()
        while self.completed < self.recipe.train.steps and not self.stopped:
            if ends_early(self.state):
                return
            metrics = self.step()
            yield self.completed, metrics

    @property
    def state(self) -> RunState:
        """All that the run consists of.

        Raises:
            FewstepError: The context was not entered, or was left.
        """
        if self._run is None:
            raise FewstepError(
                f"{self.folder}: the run is not open; write `with Run(...) as run:`", code="usage"
            )
        return self._run

    def step(self) -> dict[str, float]:
        """One iteration, and what is due after it: measurements, previews, a checkpoint.

        Returns:
            The step's metrics, as metrics.jsonl holds them.

        Raises:
            FewstepError: All steps are done.
            NonFiniteError: A loss or gradient became non-finite; the last checkpoint is good.
        """
        run = self.state
        if run.step >= self.recipe.train.steps:
            raise FewstepError(
                f"{self.folder}: all {run.step} steps are done; set train.steps higher",
                code="out-of-range",
            )
        with _explaining_lost_connections(run):
            self._record_start()
            metrics, stop = advance(run, self._interrupts)
            self.completed = run.step
            if stop and run.step < self.recipe.train.steps:
                self.stopped = True
                save(run)
                run.log.note(f"stopped after step {run.step}; continue with --resume")
        return metrics

    def save(self) -> Path:
        """Saves a checkpoint of the present step, if there is none, and waits until it is written.

        Returns:
            The checkpoint's folder.
        """
        run = self.state
        with _explaining_lost_connections(run):
            finish(run)
        return run.saving.folder / f"step-{run.step:08d}"

    def preview(self) -> Path:
        """Draws the preview's prompts with the present student, whether or not it is due.

        Returns:
            The picture, below the run's `previews`.
        """
        run = self.state
        with _explaining_lost_connections(run), averaged_student(run):
            run.preview.draw(run.step, run.train_state.roles, run.encoder)
        return self.folder / PREVIEWS / f"step-{run.step:08d}.png"

    def _record_start(self) -> None:
        """Measures the untrained student, once."""
        if self.state.step == 0 and not self._start_recorded:
            self._start_recorded = True
            with _explaining_lost_connections(self.state):
                metrics = look(self.state)
                judge(self.state, metrics)
                self.state.log.record(0, metrics)


def distill(
    recipe: Recipe,
    run_folder: Path,
    *,
    resume: bool = False,
    resume_from: int | None = None,
    console: Console | None = None,
) -> Path:
    """Distil the recipe's model; everything is written to the run folder.

    Arguments and further errors are those of `Trainer`.

    Returns:
        The run folder.

    Raises:
        Stopped: SIGTERM or SIGINT came and the state was saved (a SystemExit with code 0).
    """
    trainer = Trainer(recipe, run_folder, resume=resume, resume_from=resume_from, console=console)
    with notified(trainer) as begun, trainer:
        begun()
        for _ in trainer:
            pass
    if trainer.stopped:
        raise Stopped(trainer.completed)
    return Path(run_folder)


def _begin(
    recipe: Recipe,
    folder: Path,
    stack: ExitStack,
    *,
    console: Console,
    processes: ProcessGroup,
    resume: bool,
    resume_from: int | None,
) -> RunState:
    """A run where it starts, or where it was; until the stack ends, the folder is its own."""
    validated = check(recipe, partial(console.print, markup=False, highlight=False, soft_wrap=True))
    validated = replace(validated, device=processes.device(validated.device))
    start = stack.enter_context(
        starting_point(recipe, folder, processes, resume=resume, resume_from=resume_from)
    )
    with deterministic(recipe.train.deterministic):
        run = build(recipe, folder, validated, console, processes, fresh=start.saved is None)
        if start.saved is not None:
            restore(run, start.saved, going_back=start.back)
        else:
            refuse_unsound_teacher(run)
        looked_at = validated.prompts.sample
        told = validated.prompts.describe(run.encoder.overlong(looked_at), len(looked_at))
    if processes.first:
        for note in start.settle(folder):
            run.log.note(note)
        write_text(folder / CONFIG, recipe.to_yaml())
    notes = run.backbone.grid_notes(recipe.grid, *recipe.resolution.sizes[0])
    for note in (f"{told}; {_where(run)}", validated.prompts.distribution(), *notes):
        run.log.note(note)
    return run


def _where(run: RunState) -> str:
    step, size = f"step {run.step} of {run.recipe.train.steps}", run.processes.size
    return step if size == 1 else f"{step}; {size} processes, shard {run.recipe.parallel.shard}"


@contextmanager
def _explaining_lost_connections(run: RunState) -> Iterator[None]:
    """Context in which the loss of another process is told as such, with where to go on from."""
    try:
        yield
    except RuntimeError as error:
        if run.processes.size == 1 or not is_connection_lost(error):
            raise
        raise connection_lost(error, newest(run)) from error


def advance(run: RunState, interrupts: Interrupts | None = None) -> tuple[dict[str, float], bool]:
    """One iteration, and what is due after it: measurements, previews, a checkpoint.

    Returns:
        The step's metrics, and whether some process was asked to stop.
    """
    recipe, roles = run.recipe, run.train_state.roles
    began, evaluations = time.perf_counter(), roles.evaluations
    draws = Draws(recipe.train.seed, run.step, run.backbone.device)
    optimizers = run.train_state.optimizers
    rates = {f"lr/{name}": each.lr_at(run.step + 1) for name, each in optimizers.items()}
    parts = _batch(run, draws)
    try:
        with at_size_of(run, draws) as algorithm:
            measured = iteration(run.train_state, parts, draws, algorithm)
    except NonFiniteError as error:
        run.saving.wait()
        raise explained(run, error, parts) from error
    spent, asked = roles.evaluations - evaluations, interrupts is not None and interrupts.requested
    counted = [spent, asked, run.saving.has_failed()]
    *values, spent_each, stop, unwritten = _means(run, [*measured.values()], counted)
    if unwritten:  # known to all processes at the same step
        run.saving.wait()
    metrics = dict(zip(measured, values, strict=True))
    seconds = time.perf_counter() - began
    run.step += 1
    run.seconds += seconds
    run.evaluations += round(spent_each * run.processes.size)
    metrics |= rates | {
        "evaluations": run.evaluations,
        "seconds": seconds,
        "images_per_second": recipe.data.batch_size / seconds,
        "memory_gb": memory_gb(),
    }
    metrics |= look(run)
    judge(run, metrics)
    run.log.record(run.step, metrics)
    ended = diverged(run)
    due = run.step % recipe.checkpoint.every == 0 or run.step == recipe.train.steps
    if due or ended or is_best(run) or run.saving.retry_due(run.step):
        save(run)
    if ended:
        run.saving.wait()
        raise diverged(run) or ended  # names what is there now
    return metrics, stop > 0


def _means(
    run: RunState, measured: Sequence[torch.Tensor], counted: Sequence[float]
) -> list[float]:
    """Means over the processes, of what was measured and what was counted: the one host sync."""
    device = run.backbone.device
    values = [*measured, *torch.tensor(counted, dtype=torch.float32, device=device).unbind()]
    return run.processes.mean(torch.stack(values)).tolist()


def _batch(run: RunState, draws: Draws) -> list[Batch]:
    """The samples of the coming step that are this process's, encoded, in the wanted parts."""
    encoder = run.encoder
    batches = [
        Batch(encoder.encode(texts), encoder.null(len(own)), own, together)
        for texts, own, together in _parts(run, draws)
    ]
    encoder.prefetch([texts for texts, *_ in _parts(run, replace(draws, step=draws.step + 1))])
    return batches


def _parts(
    run: RunState, draws: Draws
) -> list[tuple[list[str], torch.Tensor, torch.Tensor | None]]:
    """Prompts of each part of a step, and what `samples_of` says of it."""
    data, processes = run.recipe.data, run.processes
    samples = samples_of(
        run.algorithm,
        draws,
        data.batch_size,
        parts=data.parts(processes.size),
        rank=processes.rank,
        processes=processes.size,
        joint=processes.sharded,
    )
    prompts = run.order.take(draws.step * data.batch_size, data.batch_size)
    return [([prompts[i] for i in own.tolist()], own, together) for own, together in samples]
