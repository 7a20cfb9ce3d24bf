"""The world makes itself from a seed, and trains on from what there is."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from toyworld_training.make import make


def weights(folder):
    return StableDiffusion3Pipeline.from_pretrained(folder / "pipeline").transformer.state_dict()


@pytest.mark.slow
def test_a_world_is_made_from_nothing_and_then_trained_on(tmp_path):
    said = []
    make(tmp_path / "work", tmp_path / "data", steps=2, say=said.append)
    assert len(said) == 4
    facts = json.loads((tmp_path / "data" / "made.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 0 and facts["continued"] is False
    assert (tmp_path / "data" / "prompts" / "train.txt").exists()
    start = tmp_path / "data" / "pipeline"
    make(tmp_path / "work2", tmp_path / "data2", start=start, steps=2, say=said.append)
    before, after = weights(tmp_path / "data"), weights(tmp_path / "data2")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert max((after[name] - before[name]).abs().max() for name in moved) < 0.1
    assert not list(tmp_path.glob("*.tmp"))
    for file in tmp_path.glob("data*/**/*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8")
