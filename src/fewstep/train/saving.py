"""What of a run is saved, and when: sound numbers only, and the last step in any case."""

from __future__ import annotations

import time

from fewstep.train.diagnosis import is_finite
from fewstep.train.optim import NonFiniteError
from fewstep.train.state import Run, groups, state
from fewstep.train.watch import newest
from fewstep.utils.disk import WriteFailed

_PAUSE = 2.0  # seconds before the last checkpoint is tried once more


def save(run: Run) -> None:
    """Save a checkpoint and remove those that are not to be kept.

    Raises:
        NonFiniteError: Some weights or moments are not finite; nothing is written.
    """
    found = groups(run)
    own = [name for name, tensors in found.items() if not is_finite(tensors.values())]
    if wrong := sorted({name for names in run.processes.exchange(own) for name in names}):
        raise NonFiniteError(
            f"step {run.step}: numbers of {', '.join(wrong)} are not finite, which is no state to "
            f"save: rates are too high; {newest(run)}"
        )
    run.saving.save(run.step, found, state(run))


def finish(run: Run) -> None:
    """Save a checkpoint of the last step and wait until it is written; the disk has two tries.

    Raises:
        WriteFailed: It could not be written.
    """
    for pause in (_PAUSE, 0.0):
        save(run)
        run.saving.wait()
        if not run.saving.failure:
            return
        time.sleep(pause)
    raise WriteFailed(f"{run.saving.failure}; step {run.step} is not saved; {newest(run)}")


def is_best(run: Run) -> bool:
    """Whether this step's preview is among those whose checkpoints are kept for their score."""
    if run.step not in run.scores:
        return False
    better = sum(score > run.scores[run.step] for score in run.scores.values())
    return better < run.recipe.checkpoint.keep_best
