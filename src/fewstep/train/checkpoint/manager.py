"""When checkpoints are written, by whom, and which one a run continues from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.config import CheckpointRecipe, Recipe
from fewstep.train import distributed
from fewstep.train.checkpoint import store
from fewstep.train.checkpoint.schema import SHARDED, SavedRun
from fewstep.train.checkpoint.store import Checkpoint, Groups
from fewstep.train.distributed import ProcessGroup
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step
from fewstep.utils.errors import FewstepError
from fewstep.utils.lock import locked

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, below the run's own."""


class CheckpointManager:
    """Saves a run's state, one checkpoint at a time, and removes those that need not be kept.

    Several processes must call everything here at the same steps.
    """

    def __init__(self, folder: Path, recipe: CheckpointRecipe, processes: ProcessGroup) -> None:
        """Nothing is written yet.

        Args:
            folder: The run's ``checkpoints``.
            recipe: What to keep, and whether training goes on while a checkpoint is written.
            processes: The processes that write.
        """
        several = processes.size > 1
        self.folder = folder
        self._recipe = recipe
        self._processes = processes
        self._asynchronous = several if recipe.asynchronous is None else recipe.asynchronous
        self._step: int | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Saves the state of a step as it is now, once; asynchronous saving returns at once.

        Raises:
            OSError: The checkpoint before could not be written.
        """
        if step == self._step:
            return
        self.wait()
        self._step = step
        if self._processes.size > 1:
            self._pending = self._start_shards(step, groups, dict(state))
        elif self._asynchronous:
            copies = {
                group: {name: each.detach().to("cpu", copy=True) for name, each in tensors.items()}
                for group, tensors in groups.items()
            }
            self._pending = self._thread.submit(self._save_whole, step, copies, dict(state))
        else:
            self._save_whole(step, groups, state)
        if not self._asynchronous:
            self.wait()

    def raise_errors(self) -> None:
        """Raises what went wrong while a checkpoint was written beside the training."""
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on the disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _save_whole(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        store.save(self.folder, step, groups, state)
        self._prune()

    def _start_shards(self, step: int, groups: Groups, state: dict[str, Any]) -> Future[None]:
        """Starts to write this process's shards; the result is there when all have written."""
        if self._processes.first:
            store.begin(self.folder, step)
        self._processes.wait()
        temporary = store.unfinished(self.folder, step)
        tensors = {
            f"{group}/{name}": tensor
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        written = distributed.write_shards(temporary, tensors, self._processes)
        content = {"format": SHARDED, "step": step, **state}
        return self._thread.submit(self._seal_shards, written, temporary, content)

    def _seal_shards(self, written: Future[Any], temporary: Path, content: dict[str, Any]) -> None:
        written.result()
        processes = self._processes
        own = store.sums_of(distributed.shards_of(temporary, processes.rank))
        sums = {name: sha for each in processes.gather(own) for name, sha in each.items()}
        if processes.first:
            store.seal(temporary, content | {"files": sums})
            self._prune()
        processes.gather(None)  # nobody goes on before the checkpoint has its name

    def _prune(self) -> None:
        recipe = self._recipe
        store.prune(self.folder, keep_last=recipe.keep_last, keep_best=recipe.keep_best)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        saved: The checkpoint that it continues from; None: it starts at step 0.
        broken: Newer checkpoints that cannot be read -> what is wrong with them.
        resumed: Whether it was asked to continue.
        note: On a killed process whose run it is; None: there was none.
    """

    saved: Checkpoint | None = None
    broken: Mapping[Path, str] = field(default_factory=dict)
    resumed: bool = False
    note: str | None = None

    def settle(self) -> list[str]:
        """Sets the damaged checkpoints aside; returns what there is to say, a line each."""
        notes = [self.note] if self.note else []
        for path, what in self.broken.items():
            notes.append(f"{what}; set aside as {store.set_aside(path).name}")
        if self.saved is not None:
            notes.append(f"resuming from {self.saved.path.name}")
        elif self.resumed:
            notes.append("no checkpoint yet: starting at step 0")
        return notes


@contextmanager
def starting_point(
    recipe: Recipe, folder: Path, processes: ProcessGroup, *, resume: bool
) -> Iterator[Start]:
    """Context in which the run's folder is this job's own; it begins with looking, not writing.

    Args:
        recipe: The run's recipe.
        folder: The run's folder, which is made if need be.
        processes: The job; its first process takes the lock.
        resume: Whether the run may continue what is there.

    Yields:
        Where the run starts.

    Raises:
        FewstepError: Another process is at work in the folder, it cannot be written to, it holds
            a run that was not asked to be resumed, or one that got further than its checkpoints.
    """
    with locked(folder) if processes.first else nullcontext() as note:
        yield processes.broadcast_from_first(
            lambda: replace(_start(recipe, folder, resume=resume), note=note)
        )


def _start(recipe: Recipe, folder: Path, *, resume: bool) -> Start:
    checkpoints = folder / CHECKPOINTS
    if not resume:
        if store.listed(checkpoints):
            raise FewstepError(
                f"{folder}: holds a run; give --resume or another folder", code="exists"
            )
        return Start()
    saved, broken = store.newest(checkpoints, partial(store.check, schema=SavedRun))
    if saved is not None:
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
