"""What goes wrong in one of two processes ends both alike: neither waits nor goes on alone."""

from __future__ import annotations

import json
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from faults.processes import start
from faults.table import RECIPE
from fewstep.train.checkpoint import store
from plugin import make_plugin

OBJECTIVE = '''
from dataclasses import replace
from typing import Literal
import torch
from fewstep.objectives.cdm import DM

class Broken(DM):
    """DM whose loss is not a number for one sample of one step."""

    name: Literal["broken"] = "broken"

    def term(self, at):
        term = yield from super().term(at)
        bad = (at.indices == 3) & (at.draws.step == 3)
        return replace(term, loss=torch.where(bad.to(term.loss.device), torch.nan, term.loss))
'''
SETTINGS = {
    "data.batch_size": 4,
    "student.every": 1,
    "train.steps": 6,
    "train.on_divergence": "warn",
    "checkpoint.every": 1,
}


def together(
    folder: Path, settings: dict, before: Callable[[int], Callable[[], None] | None]
) -> list[tuple[int, str]]:
    """Exit codes and stderr of two processes that train one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = ["distill", RECIPE, "--out", str(folder / "run")]
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    commands = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = place | own
        log = folder / f"log-{rank}"
        commands.append(start(words, log, environment=environment, before=before(rank)))
    return [(command.wait(), command.said()) for command in commands]


def see_plugin(folder: str) -> None:
    sys.path.insert(0, folder)


def small_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "shard"), [("lora", "none"), ("full", "full")])
def test_a_loss_that_is_no_number_for_one_stops_both(mode, shard, tmp_path):
    """At the same step, before the student moves; what was saved before it is sound."""
    ends = {"fewstep.objectives": {"broken": "my_broken_objective:Broken"}}
    plugin = make_plugin(tmp_path / "plugin", ends, {"my_broken_objective.py": OBJECTIVE})
    settings = SETTINGS | {"objectives": [{"name": "broken"}], "parallel.shard": shard}
    if mode == "full":
        settings |= {"student": {"mode": "full", "every": 1}}
        settings.pop("student.every")
    ended = together(tmp_path, settings, lambda rank: partial(see_plugin, str(plugin)))
    assert [code for code, _ in ended] == [2, 2], ended
    for _, said in ended:
        assert "step 4" in said and "broken" in said and "Traceback" not in said, said
    paths = store.listed(tmp_path / "run" / "checkpoints")
    assert paths[-1].name == "step-00000003"
    assert store.load(paths[-1]).state["updates"]["student"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_refuses_one_is_no_reason_to_wait(rank, tmp_path):
    """All steps are done, no checkpoint is whole, and the job says so."""
    settings = {"student": {"mode": "full"}} | SETTINGS
    ended = together(tmp_path, settings, lambda own: small_disk if own == rank else None)
    assert [code for code, _ in ended] == [2, 2], ended
    assert "not saved" in ended[0][1] and "Traceback" not in ended[0][1] + ended[1][1], ended
    assert not store.listed(tmp_path / "run" / "checkpoints")
