"""From a model and a LoRA that somebody owns to a file that their tools load, in three commands."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from fewstep import cli
from fewstep.utils.resources import resolve

MODEL = "package://fewstep.toyworld/data/pipeline"
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
SMALL = ("train.steps=2", "data.batch_size=1", "preview.count=1", "data.encode_ahead=false")


def write_style(folder, model):
    """A LoRA in diffusers' form that changes something."""
    network = SD3Transformer2DModel.from_pretrained(model / "transformer")
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=LAYERS))
    for name, parameter in network.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    layers = get_peft_model_state_dict(network)
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    return folder / "pytorch_lora_weights.safetensors", layers


@pytest.mark.slow
def test_a_model_and_a_style_become_a_lora_for_comfyui(tmp_path):
    (tmp_path / "mine").symlink_to(resolve(MODEL))
    style, layers = write_style(tmp_path / "style", tmp_path / "mine")
    settings = [word for each in SMALL for word in ("--set", each)]
    with contextlib.chdir(tmp_path):
        named = ["--model", "mine", "--lora", str(style.relative_to(tmp_path))]
        assert cli.run(["init", *named, "--to", "mine.yaml", "--json"]) == 0
        assert cli.run(["distill", "mine.yaml", "--out", "run", *settings]) == 0
        assert cli.run(["export", "run", "--format", "comfyui", "--merge"]) == 0
    export = tmp_path / "run" / "export"
    [file] = export.glob("*.safetensors")
    exported = load_file(file)
    for name, factor in layers.items():  # of a student that has hardly moved, the style is left
        assert any(name.split(".lora_")[0] in key for key in exported), name
        assert torch.isfinite(factor).all()
    assert {"LoraLoaderModelOnly", "SaveImage"} <= {
        node["class_type"]
        for node in json.loads((export / "workflow_api.json").read_text()).values()
    }
    card = (export / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card and "stabilityai" not in card.split("---")[1]
