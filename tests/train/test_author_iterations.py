"""Whole iterations agree with those of the authors' own training program.

``tests/data/iterations.npz`` holds nine optimizer updates of theirs, on the embedded pipeline with
our random values and prompts fed to it: the norm of every gradient, its inner products with random
vectors of signs, and the same of what the weights moved by. That covers simulation, anchor,
re-noising, guidance, clipping, AdamW, the pull towards the student, and the order of all these.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fewstep.config import Recipe
from fewstep.config.migrate import migrated
from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.utils.resources import resolve

ITERATIONS, VECTORS = 6, 32
FILE = Path(__file__).parents[1] / "data" / "iterations.npz"


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    with np.load(FILE) as archive:
        return {name: archive[name] for name in archive.files}


def recipe_of(theirs: dict[str, np.ndarray], step: str) -> Recipe:
    """The recorded recipe, for as many iterations; what evaluates a run is left out."""
    data = json.loads(str(theirs["recipe"]))
    del data["evaluate"]
    data = migrated(data)  # it was recorded with the settings of version 0.1.0
    data["train"] |= {"steps": ITERATIONS, "step": step, "device": "cpu"}
    data["data"]["encode_ahead"] = False
    data["checkpoint"]["every"] = ITERATIONS
    data["preview"]["teacher"] = {"steps": 1}
    data["log"] = {"every": 1}
    return Recipe.from_values(data)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in tensors])


def projections(vectors: Sequence[Tensor]) -> np.ndarray:
    """Inner products with vectors of random signs, as the record defines them, [n, VECTORS]."""
    stacked, found = torch.stack(list(vectors)), []
    for number in range(VECTORS):
        rng = torch.Generator().manual_seed(1000 + number)
        signs = torch.randint(0, 2, (stacked.shape[1],), generator=rng) * 2 - 1
        found.append(stacked @ signs.to(stacked.dtype))
    return torch.stack(found, dim=1).double().numpy()


def gradients(lines: Iterable[dict[str, float]]) -> Iterator[tuple[str, float]]:
    """Network and norm of the gradient of each update, in order."""
    for line in lines:
        for role in ("fake_teacher", "student"):
            if f"grad_norm/{role}" in line:
                yield role, line[f"grad_norm/{role}"]


def moved(recipe: Recipe, folder: Path, names: list[str]) -> dict[str, Tensor]:
    """What the weights of each trained network moved by over the run."""
    (weights,) = resolve(recipe.model.path).glob("transformer/*.safetensors")
    (checkpoint,) = store.listed(folder / "checkpoints")
    start, groups = load_file(weights), store.load(checkpoint).groups
    return {
        role: flat(groups[role][name] - start[name] for name in names)
        for role in ("student", "fake_teacher")
    }


@pytest.mark.parametrize("step", [pytest.param("plain", marks=pytest.mark.slow), "fused"])
def test_iterations_agree_with_the_authors_program(theirs, step, tmp_path):
    recipe, clipped = recipe_of(theirs, step), []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        clipped.append(flat(p.grad for p in optimizer.param_groups[0]["params"]))

    hook = register_optimizer_step_pre_hook(look)
    try:
        distill(recipe, tmp_path / "run", console=Console(file=io.StringIO()))
    finally:
        hook.remove()

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    roles, norms = zip(*gradients(map(json.loads, lines)), strict=True)
    clips = [getattr(recipe, role).optimizer.clip for role in roles]
    factors = [min(1.0, clip / (norm + 1e-6)) for clip, norm in zip(clips, norms, strict=True)]
    moves = moved(recipe, tmp_path / "run", theirs["names"].tolist())
    ours = projections([*clipped, *moves.values()])
    assert list(roles) == theirs["roles"].tolist()
    np.testing.assert_allclose(norms, theirs["norm"], rtol=1e-4)
    errors = ours[: len(roles)] / np.array(factors)[:, None] - theirs["projection"]
    assert (np.abs(errors).max(1) < 1e-4 * theirs["norm"]).all(), np.abs(errors).max(1)
    for (role, move), projection in zip(moves.items(), ours[len(roles) :], strict=True):
        size = float(theirs[f"moved_norm/{role}"])
        assert float(move.double().norm()) == pytest.approx(size, rel=1e-4)
        assert np.abs(projection - theirs[f"moved_projection/{role}"]).max() < 5e-4 * size
