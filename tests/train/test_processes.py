"""What several processes need, tested in one: shares of a batch, refusals, repeated signals."""

from __future__ import annotations

import io
import signal

import pytest
import torch
from rich.console import Console

from fewstep.config.data import DataRecipe
from fewstep.config.parallel import ParallelRecipe
from fewstep.train import distill, distributed
from fewstep.train.checkpoint import store
from fewstep.train.signals import Interrupts
from fewstep.utils.errors import FewstepError


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_share_the_parts_of_a_batch(processes):
    """As many samples at a time as one process has, or fewer; each part has one at least."""
    for size in range(processes, 49, processes):
        own = size // processes
        for accumulate in range(1, size + 1):
            parts = DataRecipe(prompts="x", batch_size=size, accumulate=accumulate).parts(processes)
            assert 1 <= parts <= own
            assert -(-own // parts) <= -(-size // accumulate)
            if accumulate % processes == 0:
                assert parts * processes == accumulate


@pytest.mark.parametrize(
    ("section", "data"),
    [({}, {"batch_size": 3}), ({"shard": "hybrid", "replicate": 2}, {"batch_size": 4})],
)
def test_a_recipe_must_fit_the_processes(section, data, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    recipe, batch = ParallelRecipe(**section), DataRecipe(prompts="x.txt", **data)
    with (
        pytest.raises(FewstepError) as refused,
        distributed.init_distributed(recipe, batch, "cpu"),
    ):
        pass
    assert refused.value.code == "config"


def test_hybrid_sharding_needs_a_number_of_copies():
    assert ParallelRecipe(shard="hybrid", replicate=2).replicate == 2
    with pytest.raises(ValueError):
        ParallelRecipe(shard="hybrid")


def test_one_request_may_come_twice():
    """By Slurm and by torchrun, which Slurm signals too: stopping at once would lose the step."""
    notes: list[str] = []
    with Interrupts(notes.append, repeat_window=60.0) as interrupts:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    assert interrupts.requested and len(notes) == 1


def test_saving_beside_the_training_keeps_the_moment(make_recipe, tmp_path, same_end):
    """One process, when asked: the same checkpoints, whatever moves meanwhile."""
    ends = []
    for beside in ("true", "false"):
        recipe = make_recipe(f"checkpoint.asynchronous={beside}", "train.steps=3")
        ends.append(distill(recipe, tmp_path / beside, console=quiet()))
    a, b = (store.load(store.find(end, "last")) for end in ends)
    for group, tensors in a.groups.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.groups[group][name])
