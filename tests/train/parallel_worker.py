"""What torchrun starts in the tests of several processes: runs, one after the other, in one go.

``parallel_worker.py JOBS``: a JSON list of {recipe, folder, resume, port, die, delay}; the last
process is killed while it writes the checkpoint of step `die`, and writes that of step `delay` only
when the step after it is in metrics.jsonl, or some seconds later if it is the last one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from fewstep.config import Recipe
from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step

REAL_SUMS_OF = store.sums_of
LAST = 3.0  # seconds that the checkpoint of the last step is late


def trouble_writing(die: int, delay: int, last: int, metrics: Path) -> None:
    """What goes wrong with this process when its shards of a checkpoint are half done."""

    def sums_of(files):
        shards = sorted(files)
        folder = shards[0].parent
        if folder == store.unfinished(folder.parent, die):
            os.truncate(shards[0], shards[0].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if folder == store.unfinished(folder.parent, delay):
            deadline = time.monotonic() + (LAST if delay == last else 120)
            while last_step(metrics) <= delay and time.monotonic() < deadline:
                time.sleep(0.05)
        return REAL_SUMS_OF(shards)

    store.sums_of = sums_of


def main() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # one store a run
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        os.environ["MASTER_PORT"] = str(job["port"])
        recipe, folder = Recipe.from_values(job["recipe"]), Path(job["folder"])
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            trouble_writing(job["die"], job["delay"], recipe.train.steps, folder / METRICS)
        distill(recipe, folder, resume=job["resume"])


if __name__ == "__main__":
    main()
