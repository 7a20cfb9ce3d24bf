"""Runs that are cheap enough to be broken a hundred times, and what they must be equal to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fewstep.train.checkpoint import store
from fewstep.utils import yaml
from toyworld_training import pipeline

SIZES = pipeline.Sizes(hidden=16, heads=1, layers=1, clip=8, t5=16, text_layers=1)
PROMPTS = ["a red circle", "a blue square", "two green triangles", "a small ring"]
MODES = {"full": "{mode: full, every: 2}", "lora": "{mode: lora, every: 2, lora: {rank: 2}}"}
STEPS = 8
CLOCKS = ("seconds", "images_per_second", "memory_gb")


def make_recipe(folder: Path) -> Path:
    """A recipe of eight iterations, a second in all with its start, and the model that it trains.

    The model is a real Stable Diffusion 3 folder of random weights. Checkpoints hold weights,
    moments and a running mean; one is written after every step, and all are kept.
    """
    pipeline.build(0, SIZES).save_pretrained(folder / "model", safe_serialization=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    content = {
        "model": {
            "path": str(folder / "model"),
            "options": {"t5": False, "max_sequence_length": 8},
        },
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
        "resolution": {"height": 32, "width": 32},
        "grid": {"name": "random", "max_steps": 3},
        "objectives": [{"name": "dm"}, {"name": "cdm"}],
        "fake_teacher": {"updates": 1, "optimizer": {"lr": 1e-3}},
        "student": {"every": 2, "optimizer": {"lr": 1e-3}},
        "ema": {"max_decay": 0.9},
        "train": {"steps": STEPS, "warmup": 0, "device": "cpu"},
        "checkpoint": {"every": 1, "keep_last": 100},
        "preview": {"every": 10000, "count": 1, "steps": [1], "teacher": {"steps": 1}},
        "health": {"every": 10000, "count": 1},
        "evaluate": {
            "prompts": str(folder / "prompts.txt"),
            "repeats": [1, 2],
            "gallery": 1,
            "configurations": [{"model": "teacher", "steps": 2}, {"model": "student", "steps": 1}],
        },
        "card": {"license": "apache-2.0"},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.dump(content), encoding="utf-8")
    return file


def distill(recipe: Path, out: Path, *overrides: str, resume: bool = False) -> list[str]:
    """Words of ``fewstep distill``."""
    sets = [word for each in overrides for word in ("--set", each)]
    return ["distill", str(recipe), "--out", str(out), *sets, *(["--resume"] if resume else [])]


def sealed(run_folder: Path) -> list[int]:
    """Steps of the checkpoints that are there under their name, oldest first."""
    paths = store.listed(run_folder / "checkpoints")
    return [int(path.name.removeprefix("step-")) for path in paths]


def recorded(run_folder: Path) -> list[int]:
    """Steps of the whole lines of metrics.jsonl."""
    file = run_folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def content(run_folder: Path, step: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint without clocks and what is kept: its state, its tensors by group and name."""
    found = store.load(run_folder / "checkpoints" / f"step-{step:08d}")
    state = {key: value for key, value in found.state.items() if key not in ("seconds", "files")}
    state["pending_metrics"] = {
        key: value for key, value in state["pending_metrics"].items() if key not in CLOCKS
    }
    state["recipe"] = {k: v for k, v in state["recipe"].items() if k != "checkpoint"}
    tensors = {
        f"{group}/{name}": tensor
        for group, named in found.groups.items()
        for name, tensor in named.items()
    }
    return state, tensors


def assert_same(one: Path, other: Path, step: int) -> None:
    """Bitwise equality of the checkpoints of a step in two run folders: nothing left out."""
    (state, tensors), (state_too, tensors_too) = content(one, step), content(other, step)
    assert state == state_too
    assert tensors.keys() == tensors_too.keys()
    assert {"student", "fake_teacher", "optimizers", "ema"} <= {
        name.partition("/")[0] for name in tensors
    }
    different = [name for name in tensors if not torch.equal(tensors[name], tensors_too[name])]
    assert not different, f"step {step}: {different}"
