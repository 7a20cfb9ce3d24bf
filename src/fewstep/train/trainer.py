"""A run from its first step to its last."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fewstep.config import Recipe, dump_recipe
from fewstep.core.noise import Draws
from fewstep.train.checkpoint import store
from fewstep.train.checkpoint.store import Checkpoint
from fewstep.train.determinism import deterministic
from fewstep.train.distributed import (
    ProcessGroup,
    connection_lost,
    init_distributed,
    is_connection_lost,
)
from fewstep.train.monitor.logger import METRICS, last_step, memory_gb
from fewstep.train.optim import NonFiniteError
from fewstep.train.signals import Interrupts, Stopped
from fewstep.train.state import CHECKPOINTS, Run, build, check, groups, restore, state
from fewstep.train.step import Batch, iteration
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_text
from fewstep.utils.hardware import denormals_flushed

CONFIG = "config.yaml"
_ECHO = 10.0  # seconds in which Slurm's signal and the same one by way of torchrun have come


def distill(
    recipe: Recipe, run_folder: Path, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Distil the recipe's model; everything is written to the run folder.

    Args:
        recipe: What to do.
        run_folder: Where to; without `resume` it must hold no checkpoints.
        resume: Continue from the newest sound checkpoint, bitwise as if never stopped. An empty
            folder starts at step 0, and so does a run that was cut off before its first checkpoint.
        console: Where progress is shown; standard error by default.

    Returns:
        The run folder.

    Raises:
        FewstepError: The run cannot start; nothing was written.
        NonFiniteError: A loss or gradient became non-finite; the last checkpoint is good.
        Stopped: SIGTERM or SIGINT came and the state was saved (a SystemExit with code 0).
    """
    folder, place = Path(run_folder), recipe.train.device
    with denormals_flushed(), init_distributed(recipe.parallel, recipe.data, place) as processes:
        console = console or Console(stderr=True, quiet=not processes.first)
        run = _begin(recipe, folder, console, processes=processes, resume=resume)
        with (
            deterministic(recipe.train.deterministic),
            run.log.opened(run.step),
            Interrupts(run.log.note, echo=_ECHO if processes.size > 1 else 0.0) as interrupts,
        ):
            _go_on(run, interrupts)
    return folder


def _begin(
    recipe: Recipe, folder: Path, console: Console, *, processes: ProcessGroup, resume: bool
) -> Run:
    """A run where it starts, or where it was; from here on the folder is its own."""
    validated = check(recipe)
    validated = replace(validated, device=processes.device(validated.device))
    saved = processes.broadcast_from_first(
        lambda: _starting_point(recipe, folder, resume=resume, console=console)
    )
    with deterministic(recipe.train.deterministic):
        run = build(recipe, folder, validated, console, processes)
        if saved is not None:
            restore(run, saved)
        told = validated.prompts.describe(run.encoder.overlong(validated.prompts.distinct))
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, dump_recipe(recipe))
    run.log.note(f"{told}; {_where(run)}")
    return run


def _where(run: Run) -> str:
    step, size = f"step {run.step} of {run.recipe.train.steps}", run.processes.size
    return step if size == 1 else f"{step}; {size} processes, shard {run.recipe.parallel.shard}"


def _go_on(run: Run, interrupts: Interrupts) -> None:
    """From where the run is to its last step, or to a signal."""
    steps = run.recipe.train.steps
    try:
        if run.step == 0:
            run.log.record(0, look(run))
        while run.step < steps:
            stop = advance(run, interrupts) and run.step < steps
            if stop:
                save(run)
                run.log.note(f"stopped after step {run.step}; continue with --resume")
                break
        run.saving.wait()
    except RuntimeError as error:
        if run.processes.size == 1 or not is_connection_lost(error):
            raise
        raise connection_lost(error, _newest(run)) from error
    if run.step < steps:
        raise Stopped(run.step)


def advance(run: Run, interrupts: Interrupts | None = None) -> bool:
    """One iteration, and what is due after it: measurements, previews, a checkpoint.

    Returns:
        Whether some process was asked to stop.
    """
    recipe, roles = run.recipe, run.train_state.roles
    began, evaluations = time.perf_counter(), roles.evaluations
    draws = Draws(recipe.train.seed, run.step, run.backbone.device)
    updaters = (run.train_state.student, run.train_state.fake_teacher)
    rates = {f"lr/{each.role}": each.lr_at(run.step + 1) for each in updaters}
    try:
        measured = iteration(run.train_state, _batch(run), draws, run.algorithm)
    except NonFiniteError as error:
        run.saving.wait()
        raise NonFiniteError(f"{error}; {_newest(run)}") from error
    spent, asked = roles.evaluations - evaluations, interrupts is not None and interrupts.requested
    *values, spent_each, stop = _means(run, [*measured.values()], [spent, asked])
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
    run.log.record(run.step, metrics | look(run))
    if run.step % recipe.checkpoint.every == 0 or run.step == recipe.train.steps or _is_best(run):
        save(run)
    run.saving.look()
    return stop > 0


def _means(run: Run, measured: list[torch.Tensor], counted: list[float]) -> list[float]:
    """Means over the processes, of what was measured and what was counted: the one host sync."""
    device = run.backbone.device
    values = [*measured, *torch.tensor(counted, dtype=torch.float32, device=device).unbind()]
    return run.processes.mean(torch.stack(values)).tolist()


def look(run: Run) -> dict[str, float]:
    """Health and preview, if this step is one for them; the preview shows the running mean."""
    metrics = {}
    ema = run.train_state.ema
    if run.health.due(run.step):
        found = run.health.measure(run.train_state.roles)
        metrics |= {name: float(value) for name, value in found.items()}
    if run.preview.due(run.step) or run.step == run.recipe.train.steps:
        with ema.applied() if ema is not None else nullcontext():
            score = run.preview.draw(run.step, run.train_state.roles, run.encoder)
        if math.isfinite(score):
            metrics["preview/score"] = score
            if run.step > 0:  # the start is no candidate: nothing was learned yet
                run.scores[run.step] = score
    return metrics


def save(run: Run) -> None:
    """Save a checkpoint and remove those that are not to be kept."""
    run.saving.save(run.step, groups(run), state(run))


def _newest(run: Run) -> str:
    """Which checkpoint there is to go back to."""
    kept = store.listed(run.saving.folder)
    return f"the newest checkpoint is {kept[-1].name}" if kept else "there is no checkpoint yet"


def _batch(run: Run) -> list[Batch]:
    """The prompts of the coming step that are this process's, encoded, in the wanted parts."""
    size = run.recipe.data.batch_size
    everyone, own = torch.arange(size), run.processes.part(size)
    prompts = run.order.take(run.step * size, size)[own]
    cond, null = run.encoder.encode(prompts), run.encoder.null(len(prompts))
    global_indices = everyone if run.processes.sharded else None
    parts = run.recipe.data.parts(run.processes.size)
    return Batch(cond, null, everyone[own], global_indices).split(parts)


def _is_best(run: Run) -> bool:
    """Whether this step's preview is among those whose checkpoints are kept for their score."""
    if run.step not in run.scores:
        return False
    better = sum(score > run.scores[run.step] for score in run.scores.values())
    return better < run.recipe.checkpoint.keep_best


def _starting_point(
    recipe: Recipe, folder: Path, *, resume: bool, console: Console
) -> Checkpoint | None:
    """Checkpoint to continue from; None for a run that starts at step 0.

    Raises:
        FewstepError: The folder belongs to a run that was not asked to be resumed, or the run it
            belongs to has got further than its checkpoints.
    """
    checkpoints = folder / CHECKPOINTS
    if not resume:
        if store.listed(checkpoints):
            raise FewstepError(
                f"{folder}: holds a run; give --resume or another folder", code="exists"
            )
        return None
    saved, notes = store.newest(checkpoints, store.check)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if saved is not None:
        console.print(f"resuming from {saved.path.name}", markup=False, highlight=False)
        return saved
    first = min(recipe.checkpoint.every, recipe.train.steps)
    if recipe.checkpoint.keep_best:
        first = min(first, recipe.preview.every)
    reached = last_step(folder / METRICS)
    if reached > first or notes or any(checkpoints.glob("broken-*")):
        raise FewstepError(
            f"{folder}: nothing to resume from: the run got to step {reached} but has no sound "
            "checkpoint; remove the folder to start again",
            code="missing-file",
        )
    console.print("no checkpoint yet: starting at step 0", markup=False, highlight=False)
    return None
