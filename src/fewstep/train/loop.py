"""A run from its first step to its last."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from fewstep.config import Recipe, dump_recipe
from fewstep.errors import FewstepError
from fewstep.files import write_text
from fewstep.randomness import Draws
from fewstep.train import checkpoint
from fewstep.train.checkpoint import Checkpoint
from fewstep.train.interrupt import Interrupts, Stopped
from fewstep.train.log import METRICS, last_step, memory_gb
from fewstep.train.repeatable import repeatable
from fewstep.train.run import Run, build, check, groups, restore, state
from fewstep.train.step import Batch, iteration
from fewstep.train.updater import NonFiniteError

CHECKPOINTS, CONFIG = "checkpoints", "config.yaml"


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
    folder, console = Path(run_folder), console or Console(stderr=True)
    checked = check(recipe)
    saved = _starting_point(recipe, folder, resume=resume, console=console)
    with repeatable(recipe.train.deterministic):
        run = build(recipe, folder, checked, console)
        if saved is not None:
            restore(run, saved)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, dump_recipe(recipe))
        with run.log.opened(run.step), Interrupts(run.log.note) as interrupts:
            told = checked.prompts.describe(run.encoder.overlong(checked.prompts.distinct))
            run.log.note(f"{told}; step {run.step} of {recipe.train.steps}")
            _go_on(run, interrupts)
    return folder


def _go_on(run: Run, interrupts: Interrupts) -> None:
    """From where the run is to its last step, or to a signal."""
    steps = run.recipe.train.steps
    if run.step == 0:
        run.log.record(0, look(run))
    while run.step < steps:
        advance(run)
        if interrupts.requested and run.step < steps:
            save(run)
            run.log.note(f"stopped after step {run.step}; continue with --resume")
            raise Stopped(run.step)


def advance(run: Run) -> None:
    """One iteration, and what is due after it: measurements, previews, a checkpoint."""
    recipe, roles = run.recipe, run.trainees.roles
    began, evaluations = time.perf_counter(), roles.evaluations
    draws = Draws(recipe.train.seed, run.step, run.backbone.device)
    rates = {
        f"lr/{each.role}": each.lr for each in (run.trainees.student, run.trainees.fake_teacher)
    }
    try:
        measured = iteration(run.trainees, _batch(run), draws, run.algorithm)
    except NonFiniteError as error:
        kept = checkpoint.listed(run.folder / CHECKPOINTS)
        last = f"the newest checkpoint is {kept[-1].name}" if kept else "there is no checkpoint yet"
        raise NonFiniteError(f"{error}; {last}") from error
    metrics = dict(zip(measured, torch.stack([*measured.values()]).tolist(), strict=True))
    seconds = time.perf_counter() - began
    run.step += 1
    run.seconds += seconds
    run.evaluations += roles.evaluations - evaluations
    metrics |= rates | {
        "evaluations": run.evaluations,
        "seconds": seconds,
        "images_per_second": recipe.data.batch_size / seconds,
        "memory_gb": memory_gb(),
    }
    run.log.record(run.step, metrics | look(run))
    if run.step % recipe.checkpoint.every == 0 or run.step == recipe.train.steps or _is_best(run):
        save(run)


def look(run: Run) -> dict[str, float]:
    """Health and preview, if this step is one for them; the preview shows the running mean."""
    metrics = {}
    ema = run.trainees.ema
    if run.health.due(run.step):
        found = run.health.measure(run.trainees.roles)
        metrics |= {name: float(value) for name, value in found.items()}
    if run.preview.due(run.step) or run.step == run.recipe.train.steps:
        with ema.applied() if ema is not None else nullcontext():
            score = run.preview.draw(run.step, run.trainees.roles, run.encoder)
        if math.isfinite(score):
            metrics["preview/score"] = score
            if run.step > 0:  # the start is no candidate: nothing was learned yet
                run.scores[run.step] = score
    return metrics


def save(run: Run) -> Path:
    """Save a checkpoint and remove those that are not to be kept."""
    folder, keep = run.folder / CHECKPOINTS, run.recipe.checkpoint
    path = checkpoint.save(folder, run.step, groups(run), state(run))
    checkpoint.prune(folder, keep_last=keep.keep_last, keep_best=keep.keep_best)
    return path


def _batch(run: Run) -> list[Batch]:
    """The prompts of the coming step, encoded, in as many parts as the recipe wants."""
    size = run.recipe.data.batch_size
    prompts = run.order.take(run.step * size, size)
    batch = Batch(run.encoder.encode(prompts), run.encoder.null(size), torch.arange(size))
    return batch.split(run.recipe.data.accumulate)


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
        if checkpoint.listed(checkpoints):
            raise FewstepError(f"{folder}: holds a run; give --resume or another folder")
        return None
    saved, notes = checkpoint.newest(checkpoints)
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
            "checkpoint; remove the folder to start again"
        )
    console.print("no checkpoint yet: starting at step 0", markup=False, highlight=False)
    return None
