"""What torchrun starts in the tests of several processes: runs, one after the other, in one go.

``parallel_worker.py JOBS``: a JSON list of {recipe, folder, resume, port}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from fewstep.config import parse_recipe
from fewstep.train import distill


def main() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # one store a run
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        os.environ["MASTER_PORT"] = str(job["port"])
        distill(parse_recipe(job["recipe"]), Path(job["folder"]), resume=job["resume"])


if __name__ == "__main__":
    main()
