"""Checkpoints in one file: the model is, bit for bit, that of the folder they were made from."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from fewstep import models
from fewstep.core.types import Conditioning
from fewstep.utils.pretrained import Pretrained
from refusals import names_in, refuses
from tiny import discover

PREFIX = "model.diffusion_model."


def tensors_of(folder, component):
    return load_file(next((folder / component).glob("*.safetensors")))


IN_ALL = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
IN_A_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
STACKED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def sd3_in_its_original_names(net, tensors):
    """The network's tensors as Stability AI's own code names, stacks and orders them."""
    last = f"transformer_blocks.{net.config.num_layers - 1}.norm1_context.linear"
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if name == "pos_embed.pos_embed":
            found["pos_embed"] = tensor
        elif layer in IN_ALL:
            found[f"{IN_ALL[layer]}.{kind}"] = tensor
        elif (inner := layer.split(".", 2)[2]) in IN_A_BLOCK:
            found[f"joint_blocks.{layer.split('.')[1]}.{IN_A_BLOCK[inner]}.{kind}"] = tensor
        if layer in ("norm_out.linear", last):  # shift and scale stand the other way round
            place = next(place for place, each in found.items() if each is tensor)
            found[place] = torch.cat(tensor.chunk(2)[::-1])
    for block in range(net.config.num_layers):
        for place, layers in STACKED.items():
            for kind in ("weight", "bias"):
                parts = [tensors.get(f"transformer_blocks.{block}.{x}.{kind}") for x in layers]
                if all(part is not None for part in parts):
                    found[f"joint_blocks.{block}.{place}.{kind}"] = torch.cat(parts)
    return {f"{PREFIX}{place}": tensor for place, tensor in found.items()}


@pytest.fixture(scope="module")
def tiny():
    return discover()["sd3"]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3") / "model"
    tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny, folder):
    return models.load(folder, **tiny.options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def checkpoint(folder, backbone):
    """The tensors of the pipeline's network and VAE in one file."""
    tensors = sd3_in_its_original_names(backbone.net, tensors_of(folder, "transformer"))
    for name, tensor in tensors_of(folder, "vae").items():
        tensors[f"first_stage_model.{name}"] = tensor  # as diffusers names them: read as they are
    return tensors


def velocity(tiny, backbone):
    generator = torch.Generator().manual_seed(0)
    xt = torch.randn(2, *backbone.latent_shape(*tiny.size), generator=generator)
    cond: Conditioning = backbone.encode(["a red circle", "a blue square"])
    with torch.no_grad():
        return backbone.velocity(backbone.net, xt, torch.tensor([0.3, 0.9]), cond)


def test_the_velocity_of_a_single_file_is_that_of_the_folder(
    tiny, folder, backbone, checkpoint, cache, tmp_path
):
    file = tmp_path / "my-fine-tune.safetensors"
    save_file({k: x.contiguous() for k, x in checkpoint.items()}, file)
    loaded = models.load(Pretrained(str(file), components=str(folder)), **tiny.options)
    assert torch.equal(velocity(tiny, loaded), velocity(tiny, backbone))
    for name, each in backbone.pipe.vae.state_dict().items():
        assert torch.equal(loaded.pipe.vae.state_dict()[name], each)
    converted = [path for path in cache.iterdir() if not path.name.startswith(".")]
    assert len(converted) == 1
    assert loaded.source == converted[0]
    changed = tmp_path / "moved.safetensors"  # its content decides, not where it is
    shutil.copy(file, changed)
    assert models.fingerprint(
        Pretrained(str(changed), components=str(folder))
    ) == models.fingerprint(Pretrained(str(file), components=str(folder)))


def test_what_neither_has_is_asked_for(tiny, folder, checkpoint, cache, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({k: x.contiguous() for k, x in checkpoint.items() if PREFIX in k}, file)
    with refuses("missing-input", file) as caught:
        models.load(file, **tiny.options)
    assert "model.components" in names_in(caught.value)
    partly = tmp_path / "parts"
    shutil.copytree(folder, partly)
    for each in (partly / "text_encoder_3").glob("*.safetensors"):
        each.unlink()
    with refuses("missing-input", file) as caught:
        models.load(Pretrained(str(file), components=str(partly)), **tiny.options)
    assert {"text_encoder_3", "model.components"} <= names_in(caught.value)
    assert not cache.exists() or not list(cache.glob("[!.]*"))


@pytest.mark.parametrize("change", ["lost", "nan", "other"])
def test_a_damaged_checkpoint_is_refused_by_the_name_of_a_tensor(
    tiny, folder, checkpoint, cache, tmp_path, change
):
    file = tmp_path / "model.safetensors"
    tensors = {k: x.contiguous() for k, x in checkpoint.items() if PREFIX in k}
    name = f"{PREFIX}joint_blocks.0.x_block.mlp.fc1.weight"
    if change == "lost":
        del tensors[name]
    elif change == "nan":
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    else:
        tensors[f"{PREFIX}more.weight"] = torch.ones(3)
    save_file(tensors, file)
    with pytest.raises(models.FewstepError) as caught:
        models.load(Pretrained(str(file), components=str(folder)), **tiny.options)
    assert caught.value.code in ("damaged", "non-finite", "mismatch")
    assert len(str(caught.value).splitlines()) == 1


def test_quantised_files_and_loras_are_refused(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    for tensors in (
        {f"{PREFIX}x.weight": torch.ones(2).to(torch.float8_e4m3fn)},
        {f"{PREFIX}x.weight": torch.ones(2, dtype=torch.uint8)},
        {"transformer.x.lora_A.weight": torch.ones(2, 2)},
    ):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(tensors, file)
        with refuses("unsupported", file):
            models.load(Pretrained(str(file), components=str(folder)))


def test_shapes_alone_tell_which_published_model_a_file_is_like(tmp_path):
    keys = single_file_utils.CHECKPOINT_KEY_NAMES
    cases = {
        "stabilityai/stable-diffusion-xl-base-1.0": {keys["xl_base"]: (2,)},
        "black-forest-labs/FLUX.1-dev": {
            keys["flux"][0]: (2,), "guidance_in.in_layer.bias": (2,), "img_in.weight": (2, 64),
        },
    }  # fmt: skip
    for number, (repo, shapes) in enumerate(cases.items()):
        file = tmp_path / f"{number}.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
        with refuses("missing-input", file) as caught:
            models.load(file)
        assert repo in names_in(caught.value)


def test_a_variant_is_read_or_refused_with_those_that_are_there(tiny, folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    with refuses("missing-file", copy) as caught:
        models.load(Pretrained(str(copy), variant="fp16"), **tiny.options)
    assert "model.variant" in names_in(caught.value)
    for file in [*copy.glob("*/*.safetensors")]:
        halved = {
            name: x.half() if x.is_floating_point() else x for name, x in load_file(file).items()
        }
        save_file(halved, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
    plain = models.load(copy, **tiny.options)
    loaded = models.load(Pretrained(str(copy), variant="fp16"), **tiny.options)
    for name, each in plain.net.named_parameters():
        assert torch.equal(dict(loaded.net.named_parameters())[name], each.half().float())
