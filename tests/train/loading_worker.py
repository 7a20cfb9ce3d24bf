"""What torchrun starts to weigh the loading of a run: ``loading_worker.py RECIPE FOLDER``.

Each process writes ``memory-RANK.json``: its memory before, at its fullest and after, in bytes,
and what it holds for good.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import psutil
import torch
from rich.console import Console
from torch.distributed import fsdp

from fewstep import models
from fewstep.config import Recipe
from fewstep.train.distributed import init_distributed
from fewstep.train.roles import TEACHER, TRAINED
from fewstep.train.state import build, check


def fullest() -> int:
    """Most memory so far, the mapped pages of files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    torch.set_num_threads(1)
    recipe = Recipe.from_values(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    console = Console(file=io.StringIO())
    assert fsdp and models.load_meta(recipe.model.path)  # libraries are there before
    validated = check(recipe)
    with init_distributed(recipe.parallel, recipe.data, recipe.train.device) as processes:
        before = psutil.Process().memory_info().rss
        run = build(recipe, Path(sys.argv[2]), validated, console, processes)
        roles = run.train_state.roles
        weights = list(roles.net(TEACHER).parameters())
        nets = [roles.net(role) for role in (TEACHER, *TRAINED)]
        found = {
            "before": before,
            "fullest": fullest(),
            "after": psutil.Process().memory_info().rss,
            "shards": sum(p.to_local().nbytes for net in nets for p in net.parameters()),
            "weights": sum(p.numel() * p.element_size() for p in weights),
        }
    file = Path(sys.argv[1]).with_name(f"memory-{processes.rank}.json")
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
