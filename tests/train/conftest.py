"""A tiny random Stable Diffusion 3, and recipes that train it for a few steps."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fewstep.config import Recipe
from fewstep.train.checkpoint.store import load
from fewstep.train.state import Run, build, check

PROMPTS = ["a red circle", "a blue square", "two green triangles", "a small ring", "nothing else"]
MODES = {"full": ["student.mode=full"], "lora": ["student.mode=lora", "student.lora.rank=4"]}
CLOCK = ("seconds", "images_per_second", "memory_gb")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights."""
    from toyworld_training.pipeline import build as build_pipeline

    folder = tmp_path_factory.mktemp("model")
    build_pipeline(0).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def make_recipe(model: Path) -> Callable[..., Recipe]:
    """``make_recipe("train.steps=3", ...)``: six quick iterations unless told otherwise."""
    prompts = model / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    base: dict[str, Any] = {
        "model": {"path": str(model), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(prompts), "batch_size": 3},
        "resolution": {"height": 64, "width": 64},
        "grid": {"name": "random", "max_steps": 3},
        "objectives": [{"name": "ca"}, {"name": "dm"}, {"name": "cdm"}],
        "fake_teacher": {"optimizer": {"lr": 1e-3}},
        "student": {"optimizer": {"lr": 1e-3}},
        "train": {"steps": 6, "warmup": 2},
        "checkpoint": {"every": 2},
        "preview": {"every": 3, "count": 2, "teacher": {"steps": 2}},
        "health": {"every": 3, "count": 2, "sigmas": [0.5]},
    }

    def make(*overrides: str) -> Recipe:
        data = json.loads(json.dumps(base))
        return Recipe.from_values(data, overrides)

    return make


@pytest.fixture
def make_run(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Run]:
    """``make_run("student.mode=lora", ...)``: a run at step 0 that has written nothing."""

    def make(*overrides: str) -> Run:
        recipe = make_recipe(*overrides)
        return build(recipe, tmp_path / "run", check(recipe), Console(file=io.StringIO()))

    return make


def end_of(folder: Path, step: int) -> dict[str, Any]:
    """All that must not depend on interruptions: the last checkpoint and the metrics."""
    saved = load(folder / "checkpoints" / f"step-{step:08d}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = {key: value for key, value in saved.state.items() if key not in ("seconds", "files")}
    for line in [*lines, state["pending_metrics"]]:
        for key in CLOCK:
            line.pop(key, None)
    return {"groups": saved.groups, "state": state, "metrics": lines}


def assert_same_end(one: Path, other: Path, step: int) -> None:
    """Bitwise equality of two runs."""
    a, b = end_of(one, step), end_of(other, step)
    assert a["state"] == b["state"]
    assert a["metrics"] == b["metrics"]
    assert a["groups"].keys() == b["groups"].keys()
    for group, tensors in a["groups"].items():
        assert tensors.keys() == b["groups"][group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b["groups"][group][name]), f"{group}: {name}"


@pytest.fixture(scope="session")
def same_end() -> Callable[[Path, Path, int], None]:
    """The comparison above, as tests cannot import this file."""
    return assert_same_end
