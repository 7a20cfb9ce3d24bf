"""What torchrun starts in the tests of several processes: runs, one after the other, in one go.

``parallel_worker.py JOBS``: a JSON list of {recipe, folder, resume, port, die, dawdle}; the last
process is killed while it writes the checkpoint of step `die`, and slow to write that of `dawdle`.
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


def trouble_writing(die: int, dawdle: int) -> None:
    """What goes wrong with this process when its pieces of a step's checkpoint are half done."""
    real = store.sums_of

    def sums_of(files):
        found = sorted(files)
        place = found[0].parent
        if place == store.unfinished(place.parent, die):
            os.truncate(found[0], found[0].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if place == store.unfinished(place.parent, dawdle):
            time.sleep(20)
        return real(found)

    store.sums_of = sums_of


def main() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # one store a run
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        os.environ["MASTER_PORT"] = str(job["port"])
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            trouble_writing(job["die"], job["dawdle"])
        distill(Recipe.from_values(job["recipe"]), Path(job["folder"]), resume=job["resume"])


if __name__ == "__main__":
    main()
