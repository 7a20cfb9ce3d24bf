"""Single files: the published names, of which diffusers' own converters make its names again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file

from fewstep import models
from fewstep.inference.load import export_model
from fewstep.models import shipped_configs
from fewstep.models.original import check_layout, original_layout
from refusals import refuses

CONVERTERS = {
    "sd3": theirs.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux": theirs.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": theirs.convert_flux2_transformer_checkpoint_to_diffusers,
    "klein": theirs.convert_flux2_transformer_checkpoint_to_diffusers,
    "auraflow": theirs.convert_auraflow_transformer_checkpoint_to_diffusers,
    "lumina2": theirs.convert_lumina2_to_diffusers,
    "zimage": theirs.convert_z_image_transformer_checkpoint_to_diffusers,
    "wan": theirs.convert_wan_transformer_to_diffusers,
}


def published():
    """A published model of each family, whose configurations are shipped; SD3.5 has more layers."""
    for name in CONVERTERS:
        repos = [each.repo for each in models.FAMILIES.get(name).models]
        shipped = [repo for repo in repos if repo in shipped_configs.available()]
        for repo in dict.fromkeys(
            [shipped[0], *(each for each in shipped if "3.5-medium" in each)]
        ):
            yield pytest.param(name, repo, id=repo)


def thin(net):
    """Weights of a network's own numbers of rows, one column each, no two alike."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    return {
        name: torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("family", "repo"), published())
def test_diffusers_reads_it_back(family, repo):
    state = thin(models.load_meta(shipped_configs.folder_of(repo), force=True).net)
    there = original_layout(family, state)
    back = CONVERTERS[family](dict(there))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_a_family_of_no_known_layout_is_refused():
    for family in ("sana", "longcat"):
        with refuses("unsupported", family):
            check_layout(family)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_is_exported_as_one_file(make_run, tmp_path, mode):
    run = make_run(mode)
    whole = export_model(run, tmp_path / "whole", merge=mode == "lora")
    state = load_file(whole / "transformer" / "diffusion_pytorch_model.safetensors")
    out = export_model(run, tmp_path / "one", format="single-file", dtype="bfloat16")
    (file,) = out.glob("*.safetensors")
    found = load_file(file)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    back = CONVERTERS["sd3"](found)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor.bfloat16()), name
    graph = json.loads((out / "workflow_api.json").read_text(encoding="utf-8"))
    names = [node["inputs"].get("unet_name") for node in graph.values()]
    assert file.name in names and not any(
        node["class_type"] == "LoraLoaderModelOnly" for node in graph.values()
    )
    card = (Path(out) / "README.md").read_text(encoding="utf-8")
    assert "models/diffusion_models" in card and "GGUF" in card
