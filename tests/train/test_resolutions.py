"""Several sizes in one run: each batch has one, and is what it is in a run of that size alone."""

from __future__ import annotations

import pytest
import torch

from fewstep.config import Recipe
from fewstep.core.noise import Draws
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import memory_items, peak
from fewstep.train.trainer import Trainer, distill
from refusals import refuses
from tiny import discover

TINY = discover()
QUICK = ("sd3", "flux", "qwenimage", "longcat")
FAMILIES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(TINY)
]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tmp_path_factory):
    """A tiny pipeline, its folder, and two sizes: the family's own lying and standing."""
    found = TINY[request.param]
    folder = tmp_path_factory.mktemp(found.name) / "pipeline"
    found.build(folder)
    height, width = found.size
    lying = (height, 2 * width) if height == width else (height, width)
    return found, folder, [list(lying), list(reversed(lying))]


def recipe_for(tiny, resolution, **train):
    found, folder, _ = tiny
    return Recipe.from_values(
        {
            "model": {"path": str(folder), "options": dict(found.options)},
            "data": {"prompts": ["a red circle", "a blue square"], "batch_size": 2},
            "resolution": resolution,
            "grid": {"name": "random", "max_steps": 2},
            "objectives": [{"name": "dm"}, {"name": "cdm"}],
            "student": {"every": 1, "optimizer": {"lr": 1e-3}},
            "train": {"steps": 1, "warmup": 0, "seed": 0} | train,
            "checkpoint": {"every": 1},
            "preview": {"every": 1, "count": 1, "teacher": {"steps": 1}, "steps": [1]},
            "health": {"every": 1, "count": 1, "sigmas": [0.5]},
        }
    )


def drawn(seed, step):
    """Which of two sizes a batch has."""
    return int(torch.randint(2, (), generator=Draws(seed, step).shared("resolution")))


def trained(recipe, folder):
    """The student's weights after a run, and the metrics of its last step."""
    with Trainer(recipe, folder) as trainer:
        *_, (_, metrics) = trainer
        weights = trainer.state.train_state.roles.parameters("student")
        return {name: weight.detach().clone() for name, weight in weights.items()}, metrics


def test_a_batch_is_that_of_a_run_of_its_size(tiny, tmp_path):
    sizes = tiny[2]
    seed = next(seed for seed in range(99) if drawn(seed, 0) == 1)
    mixed, measured = trained(recipe_for(tiny, sizes, seed=seed), tmp_path / "mixed")
    second, other = trained(recipe_for(tiny, sizes[1:], seed=seed), tmp_path / "second")
    assert all(torch.equal(weight, second[name]) for name, weight in mixed.items())
    assert measured["loss/dm"] == other["loss/dm"]
    # What is looked at between the steps has the first size.
    assert measured["health/fake_teacher_loss@0.5"] != other["health/fake_teacher_loss@0.5"]
    with Trainer(recipe_for(tiny, sizes, seed=seed), tmp_path / "mixed", resume=True) as again:
        health = again.state.health.measure(again.state.train_state.roles)
    assert float(health["health/fake_teacher_loss@0.5"]) == measured["health/fake_teacher_loss@0.5"]


def test_both_sizes_come_and_resuming_is_exact(tmp_path, tiny):
    if tiny[0].name not in QUICK[:2]:
        pytest.skip("the stream is the same for all")
    seed = next(seed for seed in range(99) if [drawn(seed, step) for step in (0, 1)] == [1, 0])
    recipe = recipe_for(tiny, tiny[2], steps=2, seed=seed)
    whole, _ = trained(recipe, tmp_path / "whole")
    distill(recipe_for(tiny, tiny[2], steps=1, seed=seed), tmp_path / "parts")
    with Trainer(recipe, tmp_path / "parts", resume=True) as trainer:
        for _ in trainer:
            pass
        after = trainer.state.train_state.roles.parameters("student")
        assert all(torch.equal(weight, after[name]) for name, weight in whole.items())


MINE = {"model.path": "package://fewstep.toyworld/data/pipeline"}


def test_a_list_of_sizes_is_the_first_and_others(tmp_path):
    sizes = [[64, 64], [32, 64], [64, 32]]
    recipe = Recipe.named("demo", {"resolution": sizes})
    assert [list(size) for size in recipe.resolution.sizes] == sizes
    assert Recipe.named("demo", {"resolution": sizes[:1]}) == Recipe.named("demo")
    file = tmp_path / "again.yaml"
    file.write_text(recipe.to_yaml())
    assert Recipe.from_file(file) == recipe
    for wrong in ([], [64, 64], [[64]], [[64, 64], [64, 64]], [[64, "wide"]], [[64, 64], [0, 64]]):
        with refuses("config", "resolution"):
            Recipe.named("demo", {"resolution": wrong})


def test_the_largest_counts_for_memory():
    def counted(sizes):
        estimate = Estimate.load(Recipe.named("demo", {"resolution": sizes}), cuda=False)
        return peak(memory_items(estimate))

    small, large = counted([[32, 32]]), counted([[64, 64]])
    assert counted([[32, 32], [64, 64]]) == counted([[64, 64], [32, 32]]) == large > small
    with refuses("out-of-range"):
        counted([[64, 64], [64, 65]])
