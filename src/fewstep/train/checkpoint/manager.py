"""When checkpoints are written, by whom, and which one a run continues from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.config import CheckpointRecipe, Recipe
from fewstep.train import distributed
from fewstep.train.checkpoint import store
from fewstep.train.checkpoint.schema import SHARDED, Checkpoint, Groups, SavedRun
from fewstep.train.distributed import ProcessGroup
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step
from fewstep.utils.disk import WriteFailed, writing
from fewstep.utils.errors import FewstepError
from fewstep.utils.lock import locked

CHECKPOINTS, PREVIEWS = "checkpoints", "previews"
"""Folders of a run's checkpoints and previews, below the run's own."""


class CheckpointManager:
    """Saves a run's state, one checkpoint at a time, and removes those that need not be kept.

    A checkpoint that the disk refuses is no error: it is told, and due again after one step, then
    after two, four, ... Several processes must call everything here at the same steps; all of them
    then come to know of a failure of any.

    Attributes:
        failure: Why the last checkpoint could not be written; empty if it could.
    """

    def __init__(
        self,
        folder: Path,
        recipe: CheckpointRecipe,
        processes: ProcessGroup,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: The run's ``checkpoints``.
            recipe: What to keep, and whether training goes on while a checkpoint is written.
            processes: The processes that write.
            note: Prints what could not be written.
        """
        several = processes.size > 1
        self.folder = folder
        self.failure = ""
        self._recipe = recipe
        self._processes = processes
        self._note = note
        self._asynchronous = several if recipe.asynchronous is None else recipe.asynchronous
        self._step: int | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._delay = 1
        self._retry_at = 0

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Saves the state of a step as it is now, once; asynchronous saving returns at once."""
        if step == self._step:
            return
        self.wait()
        self._step = step
        try:
            if self._processes.size > 1:
                self._pending = self._start_shards(step, groups, deepcopy(dict(state)))
            elif self._asynchronous:
                copies = {
                    group: {
                        name: each.detach().to("cpu", copy=True) for name, each in named.items()
                    }
                    for group, named in groups.items()
                }
                self._pending = self._thread.submit(
                    self._save_whole, step, copies, deepcopy(dict(state))
                )
            else:
                self._save_whole(step, groups, state)
                self._written()
        except WriteFailed as error:
            self._failed(error)
        if not self._asynchronous:
            self.wait()

    def retry_due(self, step: int) -> bool:
        """Whether a checkpoint that could not be written is to be tried again after a step."""
        return bool(self.failure) and step >= self._retry_at

    def has_failed(self) -> bool:
        """Whether what is written beside the training has failed here; processes may differ."""
        done = self._pending is not None and self._pending.done()
        return done and self._pending is not None and self._pending.exception() is not None

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on the disk, or has failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except WriteFailed as error:
            self._failed(error)
        else:
            self._written()

    def _written(self) -> None:
        self.failure, self._delay = "", 1

    def _failed(self, error: WriteFailed) -> None:
        step, self._step = self._step or 0, None
        self.failure, self._retry_at = str(error), step + self._delay
        self._note(
            f"checkpoint of step {step} not written: {error}; the run goes on, and tries again "
            f"after step {self._retry_at}"
        )
        self._delay = min(2 * self._delay, self._recipe.every)

    def _save_whole(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        store.save(self.folder, step, groups, state)
        with writing(self.folder):
            self._prune()

    def _start_shards(self, step: int, groups: Groups, state: dict[str, Any]) -> Future[None]:
        """Starts to write this process's shards; the result is there when all have written."""
        temporary = store.unfinished(self.folder, step)
        refused = self._processes.broadcast_from_first(
            lambda: _refusal(temporary, lambda: store.begin(self.folder, step))
        )
        if refused:
            raise WriteFailed(refused)
        tensors = {
            f"{group}/{name}": tensor
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        written = distributed.write_shards(temporary, tensors, self._processes)
        content = {"format": SHARDED, "step": step, **state}
        return self._thread.submit(self._seal_shards, written, temporary, content)

    def _seal_shards(self, written: Future[Any], temporary: Path, content: dict[str, Any]) -> None:
        processes, own = self._processes, {}

        def finish() -> None:
            distributed.finish_shards(written)
            own.update(store.sums_of(distributed.shards_of(temporary, processes.rank)))

        def seal() -> None:
            store.seal(temporary, content | {"files": sums})
            self._prune()

        answers = processes.gather((_refusal(temporary, finish), own))
        sums = {name: sha for _, each in answers for name, sha in each.items()}
        refused = next((text for text, _ in answers if text), "")
        if processes.first and not refused:
            refused = _refusal(temporary, seal)
        # Nobody goes on before the checkpoint has its name, or is known to have failed.
        if refused := next(filter(None, processes.gather(refused)), ""):
            raise WriteFailed(refused)

    def _prune(self) -> None:
        recipe = self._recipe
        store.prune(self.folder, keep_last=recipe.keep_last, keep_best=recipe.keep_best)


def _refusal(path: Path, write: Callable[[], object]) -> str:
    """Why the disk refuses what a function writes; empty if it does not."""
    try:
        with writing(path):
            write()
    except WriteFailed as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        saved: The checkpoint that it continues from; None: it starts at step 0.
        broken: Newer checkpoints that cannot be read -> what is wrong with them.
        resumed: Whether it was asked to continue.
        note: On a killed process whose run it is; None: there was none.
        back: Whether it goes back from later checkpoints.
    """

    saved: Checkpoint | None = None
    broken: Mapping[Path, str] = field(default_factory=dict)
    resumed: bool = False
    note: str | None = None
    back: bool = False

    def settle(self, folder: Path) -> list[str]:
        """Sets aside what is damaged or gone back from; returns what there is to say, by line."""
        notes = [self.note] if self.note else []
        for path, what in self.broken.items():
            notes.append(f"{what}; set aside as {store.set_aside(path).name}")
        if self.saved is not None:
            step, reason = self.saved.state["step"], self.saved.state.get("unhealthy")
            if self.back and (aside := _set_aside_after(folder, step)):
                notes.append(f"what came after step {step} is in {aside} now")
            notes.append(f"resuming from {self.saved.path.name}")
            if reason:
                notes.append(f"where the run was not healthy: {reason}")
        elif self.resumed:
            notes.append("no checkpoint yet: starting at step 0")
        return notes


@contextmanager
def starting_point(
    recipe: Recipe,
    folder: Path,
    processes: ProcessGroup,
    *,
    resume: bool,
    resume_from: int | None = None,
) -> Iterator[Start]:
    """Context in which the run's folder is this job's own; it begins with looking, not writing.

    Args:
        recipe: The run's recipe.
        folder: The run's folder, which is made if need be.
        processes: The job; its first process takes the lock.
        resume: Whether the run may continue what is there.
        resume_from: Step to go back to, whose checkpoint must be there; None: the newest.

    Yields:
        Where the run starts.

    Raises:
        FewstepError: Another process is at work in the folder, it cannot be written to, it holds
            a run that was not asked to be resumed, that got further than its checkpoints, or that
            was stopped as past saving; or there is no checkpoint of the step.
    """
    with locked(folder) if processes.first else nullcontext() as note:
        yield processes.broadcast_from_first(
            lambda: replace(_start(recipe, folder, resume, resume_from), note=note)
        )


def _start(recipe: Recipe, folder: Path, resume: bool, resume_from: int | None) -> Start:
    checkpoints = folder / CHECKPOINTS
    if resume_from is not None:
        return _asked_for(folder, resume_from)
    if not resume:
        if store.listed(checkpoints):
            raise FewstepError(
                f"{folder}: holds a run; give --resume or another folder", code="exists"
            )
        return Start()
    saved, broken = store.newest(checkpoints, partial(store.check, schema=SavedRun))
    if saved is not None:
        _refuse_lost(recipe, folder, saved)
        return Start(saved, broken, resumed=True)
    first = min(recipe.checkpoint.every, recipe.train.steps)
    if recipe.checkpoint.keep_best:
        first = min(first, recipe.preview.every)
    reached = last_step(folder / METRICS)
    if reached > first or broken or any(checkpoints.glob("broken-*")):
        why = f" ({next(iter(broken.values()))})" if broken else ""
        raise FewstepError(
            f"{folder}: nothing to resume from: the run got to step {reached} but has no sound "
            f"checkpoint{why}; remove the folder to start again",
            code="missing-file",
        )
    return Start(resumed=True)


def _asked_for(folder: Path, step: int) -> Start:
    """The checkpoint of a step."""
    there = {store.step_of(path): path for path in store.listed(folder / CHECKPOINTS)}
    if step not in there:
        kept = f"there are those of {', '.join(map(str, there))}" if there else "there is none"
        raise FewstepError(f"{folder}: no checkpoint of step {step}; {kept}", code="missing-file")
    saved = store.check(there[step], SavedRun)
    return Start(saved, resumed=True, back=True)


def _refuse_lost(recipe: Recipe, folder: Path, saved: Checkpoint) -> None:
    """Refuses to continue what `train.on_divergence` has ended."""
    if recipe.train.on_divergence == "stop" and saved.state.get("past_saving"):
        raise FewstepError(
            f"{folder}: stopped at step {saved.state['step']}: {saved.state['unhealthy']}; "
            f"{store.way_out(folder)}",
            code="diverged",
        )


def _set_aside_after(folder: Path, step: int) -> Path | None:
    """Moves a run's checkpoints and previews after a step to a folder of their own, ``aside-STEP``.

    A copy of metrics.jsonl goes with them. Nothing is deleted, and nothing there is taken for the
    run's any more.

    Returns:
        That folder; None where nothing is newer.

    Raises:
        WriteFailed: The disk refuses.
    """
    names = [*(folder / CHECKPOINTS).glob("step-*"), *(folder / PREVIEWS).glob("step-*.png")]
    newer = [each for each in names if int(each.stem.removeprefix("step-")) > step]
    if not newer:
        return None
    newest = max(int(each.stem.removeprefix("step-")) for each in newer)
    aside = folder / f"aside-{newest:08d}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    with writing(aside):
        aside.mkdir()
        if (folder / METRICS).is_file():
            shutil.copy2(folder / METRICS, aside / METRICS)
        for each in sorted(newer, reverse=True):  # the newest first: what is left is a run
            each.rename(aside / each.name)
    return aside
