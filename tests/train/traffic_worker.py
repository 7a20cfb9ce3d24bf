"""What torchrun starts to count what processes send: ``traffic_worker.py RECIPE FOLDER``.

The first process writes ``traffic.json``: bytes of whole weights that two iterations gathered, of
whole gradients that they reduced, and the figures of their losses.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.config import Recipe
from fewstep.train.trainer import Trainer

WHOLE = {"_allgather_base_": "gathered", "_reduce_scatter_base_": "reduced"}


class Traffic(TorchDispatchMode):
    """Bytes of what collectives gather and reduce, whole tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = WHOLE.get(func.overloadpacket.__name__)
        if func.namespace == "c10d" and name:
            self.bytes[name] += max(each.nbytes for each in args[:2])
        return func(*args, **(kwargs or {}))


def main() -> None:
    torch.set_num_threads(1)
    recipe = Recipe.from_values(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    with Trainer(recipe, sys.argv[2], console=Console(file=io.StringIO())) as trainer:
        trainer.step()
        with Traffic() as traffic:
            metrics = [trainer.step(), trainer.step()]
    losses = [{k: v for k, v in each.items() if k.startswith("loss/")} for each in metrics]
    if os.environ["RANK"] == "0":
        content = {**traffic.bytes, "losses": losses}
        (Path(sys.argv[2]) / "traffic.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
