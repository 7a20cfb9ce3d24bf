"""What `plan` says against what was measured on GPUs by bench/gpu.py; nothing runs on one here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.config import Recipe
from fewstep.planning.estimate import Estimate
from fewstep.planning.gpus import GPUS
from fewstep.planning.memory import memory_items
from fewstep.planning.plans import UTILISATION

FILES = sorted(
    (Path(__file__).resolve().parents[2] / "bench" / "results").glob("gpu-nvidia-*.json")
)
KINDS = {"nvidia-h100": "h100-80", "nvidia-h200": "h200-141"}
NOT_THERE = ("VAE", "text encoders")  # in those measurements
SIDES = {
    "plain": {"train.step": "plain"},
    "fused": {"train.step": "fused"},
    "compiled": {"train.step": "fused", "student.compile": True},
}


def measured():
    """Accelerator, recipe, settings, and what was measured: once for every figure there is."""
    for file in FILES:
        kind = next(gpu for name, gpu in KINDS.items() if file.stem.startswith(f"gpu-{name}"))
        parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
        for name, part in parts.items():
            if "peak_gb" in part:
                yield pytest.param(kind, part, {}, part["peak_gb"], None, id=f"{file.stem} {name}")
            for side in (side for side in SIDES if side in part):
                peak, time = part[side]["peak_memory_gb"], part[side]["seconds_per_update"]
                settings = {"student.compile": False} | SIDES[side]
                yield pytest.param(kind, part, settings, peak, time, id=f"{file.stem} {side}")


@pytest.fixture(scope="module")
def estimate_of():
    """Estimates of a shipped recipe, which share what is alike in them."""
    loaded = {}

    def make(name, settings):
        if name not in loaded:
            loaded[name] = Estimate.load(Recipe.named(name))
        return replace(loaded[name], recipe=Recipe.named(name, ["data.accumulate=1", *settings]))

    return make


@pytest.mark.parametrize(("kind", "part", "settings", "peak", "time"), measured())
def test_plans_are_near_what_was_measured(kind, part, settings, peak, time, estimate_of):
    estimate = estimate_of(part["recipe"], part["settings"]).variant(settings)
    items = [item for item in memory_items(estimate) if item.in_training]
    planned = sum(item.size for item in items if item.name not in NOT_THERE)
    assert planned / 1e9 == pytest.approx(peak, rel=0.1)
    if time is not None:
        student = estimate.recipe.student
        reached = GPUS[kind].tflops * 1e12 * UTILISATION[student.compile]
        assert estimate.iteration_flops * student.every / reached == pytest.approx(time, rel=0.2)
