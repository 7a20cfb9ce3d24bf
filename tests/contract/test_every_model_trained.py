"""Every model family is distilled, exported and drawn from, through a whole tiny run."""

from __future__ import annotations

import contextlib
import re
import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.config import Recipe
from fewstep.inference.load import export_model, open_model
from fewstep.inference.sample import Sampler, sample_images, to_pixels
from fewstep.train.trainer import Trainer
from tiny.stock import PROMPTS


def recipe_for(tiny, backbone, folder, mode):
    embedded = backbone.guidance == "embedded"
    shift = 1.3 if backbone.prediction == "velocity" else None
    every = 1 if mode == "full" else 100  # they are the same in both
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    return Recipe.from_values(
        {
            "model": {"path": str(folder), "options": dict(tiny.options)},
            "data": {"prompts": str(prompts), "batch_size": 2},
            "resolution": {"height": tiny.size[0], "width": tiny.size[1]},
            "grid": {"name": "random", "max_steps": 2, "shift": shift},
            "objectives": [
                {"name": "ca_embedded" if embedded else "ca"},
                {"name": "dm"},
                {"name": "cdm"},
            ],
            "fake_teacher": {"optimizer": {"lr": 1e-3}},
            "student": {
                "mode": mode,
                "every": 1,
                "optimizer": {"lr": 1e-3},
                **({"lora": {"rank": 2}} if mode == "lora" else {}),
            },
            "train": {"steps": 1, "warmup": 0},
            "checkpoint": {"every": 1},
            "preview": {"every": every, "count": 1, "teacher": {"steps": 1}, "steps": [1]},
            "health": {"every": every, "count": 1, "sigmas": [0.5]},
        }
    )


def copies(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_it_is_distilled_exported_and_drawn(tiny, backbone, folder, tmp_path, mode):
    """Training moves student and fake teacher only; what is exported draws what is sampled."""
    if mode == "lora" and tiny.variant:
        pytest.skip("a LoRA's format is the family's, and another of the family is tried")
    place = tmp_path / "run"
    with Trainer(recipe_for(tiny, backbone, folder, mode), place) as trainer:
        roles = trainer.state.train_state.roles
        before = {role: copies(roles.parameters(role)) for role in ("student", "fake_teacher")}
        assert before["student"].keys() == before["fake_teacher"].keys()
        [(_, metrics)] = trainer
    assert all(np.isfinite(value) for value in metrics.values())
    for role, weights in before.items():
        after = roles.parameters(role)
        assert all(torch.isfinite(weight).all() for weight in after.values())
        # What only pads or the last block's text see has no gradient, and B = 0 keeps A at first.
        moved = [name for name, weight in weights.items() if not torch.equal(weight, after[name])]
        assert len(moved) >= 0.4 * len(weights)
    pretrained = dict(backbone.net.named_parameters())
    for name, weight in roles.net("teacher").named_parameters():
        if ".lora_" not in name:
            assert torch.equal(weight, pretrained[name.replace(".base_layer", "")]), name

    exported = export_model(place, which="last", merge=mode == "lora" and not tiny.lora)
    model = open_model(exported)
    image = sample_images(model.backbone, model.net, PROMPTS[:1], sampler=Sampler.of(model))[0]
    if backbone.task == "text-to-image":
        assert np.array_equal(run_snippet(exported, folder), np.array(to_pixels(image)))
    assert Sampler(4, height=tiny.size[0], width=tiny.size[1]).evaluations(backbone) == 4


def run_snippet(exported, base):
    """The card's Python as it stands, in the folder of the export, to which a LoRA's base is put.

    Returns the picture that it writes.
    """
    (exported / base.name).symlink_to(base)
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    (exported / "snippet.py").write_text(code, encoding="utf-8")
    with contextlib.chdir(exported):
        runpy.run_path("snippet.py")
    with Image.open(exported / "image.png") as image:
        return np.array(image)
