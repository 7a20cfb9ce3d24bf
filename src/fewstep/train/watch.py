"""What a run notices of itself: measurements and previews that are due, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from fewstep.core.noise import Draws
from fewstep.core.types import Conditioning
from fewstep.train.checkpoint import store
from fewstep.train.diagnosis import cause_of_non_finite
from fewstep.train.monitor.divergence import ADVICE
from fewstep.train.monitor.early_stop import since_best
from fewstep.train.optim import DivergedError, NonFiniteError
from fewstep.train.state import Run
from fewstep.train.step import Batch


def look(run: Run) -> dict[str, float]:
    """Health and preview, if this step is one for them; the preview shows the running mean."""
    metrics: dict[str, float] = {}
    if run.health.due(run.step):
        found = run.health.measure(run.train_state.roles)
        metrics |= {name: float(value) for name, value in found.items()}
    if run.preview.due(run.step) or run.step == run.recipe.train.steps:
        with averaged_student(run):
            preview = run.preview.draw(run.step, run.train_state.roles, run.encoder)
        if preview.fault:
            run.log.note(f"preview of step {run.step}: {preview.fault}; the run goes on")
        if preview.sheet is not None:
            run.log.show(run.step, {"preview": preview.sheet})
        if math.isfinite(preview.score):
            metrics["preview/score"] = preview.score
            if run.step > 0:  # the start is no candidate: nothing was learned yet
                run.scores[run.step] = preview.score
    return metrics


def judge(run: Run, metrics: Mapping[str, float]) -> None:
    """Judges a step's figures, and says what is new."""
    verdict = run.divergence.see(run.step, metrics)
    if verdict.news:
        mark = f"; checkpoints are marked as unhealthy from here on; {ADVICE}"
        run.log.note(f"step {run.step}: {verdict.news}{mark if verdict.reason else ''}")
    if verdict.reason:
        run.scores.pop(run.step, None)  # no candidate for the best


def diverged(run: Run) -> DivergedError | None:
    """The error of a run that `train.on_divergence` ends here; None: it goes on."""
    verdict = run.divergence.verdict
    if not verdict.lost or run.recipe.train.on_divergence != "stop":
        return None
    way_out = store.way_out(run.folder)
    return DivergedError(f"step {run.step}: stopped: {verdict.reason}; {way_out}")


def ends_early(run: Run) -> bool:
    """Whether `train.early_stop` ends the run at its present step; if so, it is told.

    Saved figures decide: what is resumed at such a step ends there again, unless the setting is
    another. Previews of a run that is not healthy are no better ones.
    """
    patience, every = run.recipe.train.early_stop, run.recipe.preview.every
    judged = run.step in run.scores or run.divergence.verdict.reason
    if patience is None or run.step % every or not run.scores or not judged:
        return False
    best, since = since_best(run.scores, run.step, every)
    if since < patience:
        return False
    run.log.note(
        f"ended after step {run.step} of {run.recipe.train.steps}: {since} previews since step "
        f"{best} were no better (train.early_stop); that one is kept, and is what export takes; "
        "to go on: --resume --set train.early_stop=null"
    )
    return True


def averaged_student(run: Run) -> AbstractContextManager[None]:
    """Context in which the student's weights are their running mean, where the run keeps one."""
    ema = run.train_state.ema
    return ema.applied() if ema is not None else nullcontext()


def newest(run: Run) -> str:
    """Which checkpoint there is to go back to."""
    kept = store.newest_healthy(run.saving.folder)
    if kept is None:
        return "there is no healthy checkpoint yet"
    return f"the newest healthy checkpoint is {kept.name}"


def explained(run: Run, error: NonFiniteError, parts: Sequence[Batch]) -> NonFiniteError:
    """The error for users when a loss or a gradient of the coming step is not finite.

    All processes must call it together; networks are evaluated anew to find the cause.
    """
    size, indices = run.recipe.data.batch_size, torch.cat([part.indices for part in parts])
    prompts = run.order.take(run.step * size, size)
    draws = Draws(run.recipe.train.seed, run.step, run.backbone.device)
    cause = cause_of_non_finite(
        run.train_state.roles,
        run.processes,
        cond=Conditioning.cat([part.cond for part in parts]),
        null=Conditioning.cat([part.null for part in parts]),
        noise=draws.normal("diagnosis/noise", indices, run.algorithm.latent_shape),
        prompts=[prompts[index] for index in indices.tolist()],
    )
    told = str(error)
    if cause is not None:
        told = f"step {run.step + 1}: {cause}. Therefore {told.partition(': ')[2]}"
    return NonFiniteError(f"{told}; {newest(run)}")


def refuse_unsound_teacher(run: Run) -> None:
    """Evaluates the teacher once, before anything is written.

    Raises:
        NonFiniteError: What it draws is not finite; the cause is named.
    """
    health, roles = run.health, run.train_state.roles
    if not any(run.processes.exchange(not health.teacher_is_finite(roles))):
        return
    cause = cause_of_non_finite(
        roles,
        run.processes,
        cond=health.cond,
        null=run.encoder.null(health.cond.batch),
        noise=health.noise,
        prompts=run.preview.prompts[: health.cond.batch],
    )
    raise NonFiniteError(cause or "the teacher's latents after a few steps are not finite")
