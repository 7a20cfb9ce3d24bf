"""Checkpoints in one file: the model is, bit for bit, that of the folder they were made from."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from fewstep import models
from fewstep.core.types import Conditioning
from fewstep.models.original import original_layout
from fewstep.utils.pretrained import Pretrained
from refusals import names_in, refuses
from tiny import discover

PREFIX = "model.diffusion_model."


def tensors_of(folder, component):
    return load_file(next((folder / component).glob("*.safetensors")))


ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_as_published(net):
    """The names of a U-Net's tensors in the checkpoints of Stable Diffusion 1, 2 and XL."""
    each = net.config.layers_per_block + 1
    found = {}
    for key, tensor in net.state_dict().items():
        layer, _, kind = key.rpartition(".")
        part, *rest = key.split(".")
        if layer in UNET:
            found[f"{UNET[layer]}.{kind}"] = tensor
            continue
        if part == "mid_block":
            place = f"middle_block.{1 if rest[0] == 'attentions' else 2 * int(rest[1])}"
            inner = rest[:1] + rest[2:]
        else:
            block, what, number, *inner = int(rest[0]), rest[1], int(rest[2]), *rest[3:]
            has_attention = hasattr(getattr(net, part)[block], "attentions")
            place = {
                ("down_blocks", "downsamplers"): f"input_blocks.{each * (block + 1)}.0.op",
                ("up_blocks", "upsamplers"): (
                    f"output_blocks.{each * block + each - 1}.{1 + has_attention}.conv"
                ),
                ("down_blocks", "resnets"): f"input_blocks.{each * block + number + 1}.0",
                ("down_blocks", "attentions"): f"input_blocks.{each * block + number + 1}.1",
                ("up_blocks", "resnets"): f"output_blocks.{each * block + number}.0",
                ("up_blocks", "attentions"): f"output_blocks.{each * block + number}.1",
            }[part, what]
            inner = [what, *(inner[1:] if what.endswith("samplers") else inner)]
        name = ".".join(inner[1:])
        if inner[0] == "resnets":
            stem, _, kind = name.rpartition(".")
            name = f"{RESNET[stem]}.{kind}"
        found[f"{place}.{name}"] = tensor
    return {f"{PREFIX}{key}": tensor for key, tensor in found.items()}


def vae_as_published(vae):
    """The same of an autoencoder."""
    last, found = len(vae.config.block_out_channels) - 1, {}
    for key, tensor in vae.state_dict().items():
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        up = lambda match: f"up.{last - int(match[1])}"  # noqa: E731
        key = re.sub(r"up_blocks\.(\d+)", up, key)
        key = re.sub(r"(up\.\d+)\.resnets", r"\1.block", key)
        key = re.sub(r"(up\.\d+)\.upsamplers\.0", r"\1.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        if "mid_block.attentions" in key:
            name, _, kind = key.partition("mid_block.attentions.0.")[2].rpartition(".")
            key = f"{key.partition('.')[0]}.mid.attn_1.{ATTENTION[name]}.{kind}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[f"first_stage_model.{key}"] = tensor.contiguous()
    return found


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
    network = original_layout("sd3", tensors_of(folder, "transformer"))
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in network.items()}
    return tensors | vae_as_published(backbone.pipe.vae)


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


@pytest.mark.parametrize("name", ["sd15", "sdxl", "auraflow", "wan"])
def test_every_tensor_of_a_single_file_is_that_of_the_folder(name, cache, tmp_path):
    tiny = discover()[name]
    folder, file = tmp_path / "model", tmp_path / "one.safetensors"
    tiny.build(folder)
    backbone = models.load(folder, **tiny.options)
    pipe, tensors = backbone.pipe, {}
    if backbone.net_name == "unet":  # all in one, but SDXL's second text encoder
        clip = {"sd15": "cond_stage_model.transformer.text_model"}
        prefix = clip.get(name, "conditioner.embedders.0.transformer.text_model")
        encoder = pipe.text_encoder.state_dict()
        inside = {key.removeprefix("text_model."): x for key, x in encoder.items()}
        tensors |= {f"{prefix}.{key}": x + 1 for key, x in inside.items()}
        tensors |= unet_as_published(backbone.net) | vae_as_published(pipe.vae)
    else:
        tensors |= original_layout(backbone.name, backbone.net.state_dict())
    save_file({key: x.clone() for key, x in tensors.items()}, file)
    loaded = models.load(Pretrained(str(file), components=str(folder)), **tiny.options).pipe
    for part in (backbone.net_name, *backbone.encoder_names, "vae"):
        shifted = backbone.net_name == "unet" and part == "text_encoder"
        there = getattr(loaded, part).state_dict()
        for key, tensor in getattr(pipe, part).state_dict().items():
            expected = tensor + 1 if shifted and tensor.is_floating_point() else tensor
            assert torch.equal(there[key], expected), f"{part}.{key}"


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
