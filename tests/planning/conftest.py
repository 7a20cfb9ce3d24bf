"""Recipes and models for all tests of planning, made once."""

from __future__ import annotations

import shutil

import pytest

from fewstep.config import Recipe
from toyworld_training.pipeline import Sizes, build

SIZES = {
    "small": Sizes(hidden=128, heads=4, layers=4, clip=16, t5=32),
    "large": Sizes(hidden=256, heads=8, layers=6, clip=16, t5=32),
}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "prompts.txt"
    file.write_text("red circle\nblue square on gray\n")
    return file


@pytest.fixture(scope="session")
def configs(pipeline_folder, tmp_path_factory):
    """The pipeline's folder without any weights."""
    folder = tmp_path_factory.mktemp("configs") / "pipeline"
    shutil.copytree(pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="session")
def recipe_of(prompts):
    """A recipe for a pipeline's folder; sections replace those here."""

    def make(folder, **sections):
        data = {
            "model": {"path": str(folder), "options": {"max_sequence_length": 16}},
            "data": {"prompts": str(prompts), "batch_size": 4, "accumulate": 2},
            "resolution": {"height": 64, "width": 64},
            "grid": {"name": "fixed", "sigmas": [1.0, 0.5]},
            "objectives": [{"name": "ca"}, {"name": "dm"}, {"name": "cdm"}],
            "fake_teacher": {"updates": 2, "target": "final"},
            "train": {"steps": 2, "warmup": 0},
            "checkpoint": {"every": 2},
            "preview": {"every": 2, "count": 1, "steps": [1], "teacher": {"steps": 1}},
            "health": {"every": 2, "count": 1, "sigmas": [0.5]},
        }
        return Recipe.from_values(data | sections)

    return make


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two SD3-shaped pipelines with random weights, by size."""
    made = {}
    for name, sizes in SIZES.items():
        made[name] = tmp_path_factory.mktemp(name) / "pipeline"
        build(0, sizes).save_pretrained(made[name], safe_serialization=True)
    return made
