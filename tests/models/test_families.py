"""Model families are an open end: every file of the package, and what other packages declare."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from documented import install_family
from fewstep import models
from fewstep.config import Recipe
from fewstep.inference.load import export_model, open_model
from fewstep.train.trainer import distill
from fewstep.utils.errors import FewstepError
from plugin import make_plugin
from tiny import discover

FAMILY = """
from diffusers import StableDiffusion3Pipeline
from fewstep.models.sd3 import SD3

class HousePipeline(StableDiffusion3Pipeline):
    pass

class House(SD3):
    name = "house"
    pipelines = ("HousePipeline",)
    pipeline_class = HousePipeline
    models = ()
"""
ENTRY = {"fewstep.models": {"house": "house_family:House"}}


@pytest.fixture
def house(tmp_path, pipeline_folder, monkeypatch):
    """A pipeline of a class that diffusers does not have, and the package that has it."""
    folder = tmp_path / "house"
    shutil.copytree(pipeline_folder, folder)
    index = folder / "model_index.json"
    content = json.loads(index.read_text()) | {"_class_name": "HousePipeline"}
    index.write_text(json.dumps(content))
    with pytest.raises(FewstepError) as caught:
        models.load(folder)
    assert caught.value.code == "unsupported"
    plugin = make_plugin(tmp_path / "plugin", ENTRY, {"house_family.py": FAMILY})
    monkeypatch.syspath_prepend(plugin)
    return folder


def test_every_family_has_a_tiny_twin():
    assert {tiny.family for tiny in discover().values()} >= {row.name for row in models.available()}


def test_the_documented_family_is_listed_once_it_is_installed(tmp_path, monkeypatch):
    before = {row.name for row in models.available()}
    monkeypatch.syspath_prepend(install_family(tmp_path))
    assert {row.name for row in models.available()} - before == {"ovis"}


def test_a_family_of_another_package_is_trained_exported_and_drawn_from(house, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red circle\nblue square\n", encoding="utf-8")
    recipe = Recipe.from_values(
        {
            "model": {"path": str(house), "options": {"max_sequence_length": 8}},
            "data": {"prompts": str(prompts), "batch_size": 2},
            "resolution": {"height": 64, "width": 64},
            "objectives": [{"name": "dm"}],
            "student": {"every": 1},
            "train": {"steps": 2, "warmup": 0},
            "checkpoint": {"every": 2},
        }
    )
    run = tmp_path / "run"
    distill(recipe, run)
    exported = export_model(run, which="last")
    model = open_model(exported)
    assert model.backbone.name == "house"
    assert type(model.backbone.pipe).__name__ == "HousePipeline"
    teacher = models.load(house, max_sequence_length=8)
    pairs = zip(model.net.parameters(), teacher.net.parameters(), strict=True)
    assert any(not torch.equal(student, original) for student, original in pairs)
    assert "from house_family import HousePipeline" in (exported / "README.md").read_text()


def test_its_sizes_are_known_without_weights(house):
    meta, loaded = models.load_meta(house), models.load(house)
    assert all(parameter.is_meta for parameter in meta.net.parameters())
    assert meta.latent_shape(64, 64) == loaded.latent_shape(64, 64)


def test_two_families_of_one_pipeline_class_are_refused(house, tmp_path, monkeypatch):
    rival = {"fewstep.models": {"rival": "rival_family:Rival"}}
    source = FAMILY.replace("House(", "Rival(").replace('"house"', '"rival"')
    plugin = make_plugin(
        tmp_path / "rival", rival, {"rival_family.py": source}, name="fewstep_rival"
    )
    monkeypatch.syspath_prepend(plugin)
    with pytest.raises(FewstepError) as caught:
        models.load(house)
    assert caught.value.code == "mismatch"
