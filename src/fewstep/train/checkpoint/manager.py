"""When checkpoints are written, and by whom: at once, or beside the training that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fewstep.config import CheckpointRecipe
from fewstep.train import distributed
from fewstep.train.checkpoint import store
from fewstep.train.checkpoint.store import SHARDED, Groups
from fewstep.train.distributed import ProcessGroup


class Saving:
    """Saves a run's state, one checkpoint at a time, and removes those that need not be kept.

    Several processes must call everything here at the same steps.
    """

    def __init__(self, folder: Path, recipe: CheckpointRecipe, processes: ProcessGroup) -> None:
        """Nothing is written yet.

        Args:
            folder: The run's ``checkpoints``.
            recipe: What to keep, and whether to write beside the training.
            processes: The processes that write.
        """
        several = processes.size > 1
        self.folder = folder
        self._recipe = recipe
        self._processes = processes
        self._beside = several if recipe.asynchronous is None else recipe.asynchronous
        self._step: int | None = None
        self._thread = ThreadPoolExecutor(1)
        self._going: Future[None] | None = None

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Save a step's state as it is now, if it was not; returns at once where that is wanted.

        Raises:
            OSError: The one before could not be written.
        """
        if step == self._step:
            return
        self.wait()
        self._step = step
        if self._processes.size > 1:
            self._going = self._start_shards(step, groups, dict(state))
        elif self._beside:
            copies = {
                group: {name: each.detach().to("cpu", copy=True) for name, each in tensors.items()}
                for group, tensors in groups.items()
            }
            self._going = self._thread.submit(self._whole, step, copies, dict(state))
        else:
            self._whole(step, groups, state)
        if not self._beside:
            self.wait()

    def look(self) -> None:
        """Raise what went wrong in the io_group, if something did."""
        if self._going is not None and self._going.done():
            self._going.result()

    def wait(self) -> None:
        """Until what is being written is on the disk."""
        if self._going is not None:
            self._going.result()
            self._going = None

    def _whole(self, step: int, groups: Groups, state: Mapping[str, Any]) -> None:
        store.save(self.folder, step, groups, state)
        self._prune()

    def _start_shards(self, step: int, groups: Groups, state: dict[str, Any]) -> Future[None]:
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
        processes.gather(None)  # it is there: nobody goes on before

    def _prune(self) -> None:
        keep = self._recipe
        store.prune(self.folder, keep_last=keep.keep_last, keep_best=keep.keep_best)
