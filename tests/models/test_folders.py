"""A model is loaded whole or refused: every tensor from its file, every file where it belongs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from fewstep import models
from fewstep.inference.load import load
from fewstep.inference.runs import RunFolder
from fewstep.models import Backbone
from fewstep.train.checkpoint import store
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_model
from refusals import names_in, refuses
from tiny import Tiny, discover

TINY = discover()
QUICK = ("sd3", "wan")
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(TINY)
]
DAMAGES = ("missing", "renamed", "reshaped", "added", "nan", "infinite", "truncated")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request) -> Tiny:
    return TINY[request.param]


@pytest.fixture(scope="module")
def sound(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(tiny.name) / "sound"
    tiny.build(folder)
    return folder


def damage(file: Path, kind: str) -> str:
    """Damages a weights file; returns the name of the tensor that is wrong."""
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
        return file.name
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    floats = sorted(name for name, each in tensors.items() if each.is_floating_point())
    name = floats[len(floats) // 2]
    if kind in ("missing", "renamed"):
        taken = tensors.pop(name)
        tensors |= {f"{name}_": taken} if kind == "renamed" else {}
    elif kind == "reshaped":
        tensors[name] = tensors[name][None]
    elif kind == "added":
        name = "more.weight"
        tensors[name] = torch.ones(2)
    else:
        tensors[name].view(-1)[-1] = float("nan" if kind == "nan" else "inf")
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_component_has_exactly_the_finite_tensors_of_its_file(tiny, sound, tmp_path, kind):
    for weights in sorted(sound.glob("*/*.safetensors")):
        folder = tmp_path / weights.parent.name
        shutil.copytree(sound, folder)
        file = folder / weights.relative_to(sound)
        tensor = damage(file, kind)
        opened = [models.load] if kind in ("nan", "infinite") else [models.load, models.load_meta]
        for open_it in opened:
            options = {**tiny.options, "t5": True} if "t5" in tiny.options else tiny.options
            with pytest.raises(FewstepError) as caught:
                open_it(folder, **options)
            message = str(caught.value)
            assert str(file.parent) in message
            assert kind == "truncated" or tensor.split(".")[-2] in message
        shutil.rmtree(folder)


def pixels(folder: Path, tiny: Tiny) -> torch.Tensor:
    model = load(folder, device="cpu", **tiny.options)
    height, width = tiny.size
    [image] = model.sample("small red circle", steps=2, guidance=1.0, height=height, width=width)
    return torch.tensor(list(image.getdata()))


def test_without_any_one_file_it_is_refused_or_draws_the_same(tiny, sound, tmp_path):
    expected = pixels(sound, tiny)
    for file in sorted(path for path in sound.rglob("*") if path.is_file()):
        folder = tmp_path / "model"
        shutil.copytree(sound, folder)
        (folder / file.relative_to(sound)).unlink()
        try:
            drawn = pixels(folder, tiny)
        except FewstepError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert torch.equal(drawn, expected), file.relative_to(sound)
        shutil.rmtree(folder)


def test_loading_equals_the_stock_loader(tiny, sound):
    """The same tensors and settings, component by component."""
    backbone = models.load(sound, **tiny.options)
    missing = backbone.load_overrides(sound, **tiny.options)
    stock = DiffusionPipeline.from_pretrained(sound, **missing)
    for name, part in stock.components.items():
        ours = getattr(backbone.pipe, name)
        assert type(ours) is type(part), name
        if isinstance(part, torch.nn.Module):
            expected, found = part.state_dict(), ours.state_dict()
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_an_encoder_to_which_all_prompts_are_the_same_is_refused(tmp_path, pipeline_folder):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    file = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    tensors = {name: torch.zeros_like(x) if "norm" in name else x for name, x in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    backbone = models.load(folder)
    with refuses("damaged", folder / "text_encoder_2"):
        backbone.encode(["a", "b"])


def test_pictures_that_overflow_are_refused(pipeline_folder):
    model = load(pipeline_folder, device="cpu")
    with torch.no_grad():
        model.backbone.pipe.vae.decoder.conv_out.bias.fill_(float("inf"))
    with refuses("non-finite", pipeline_folder / "vae"):
        model.sample("a", steps=1)


def test_weights_of_one_variant_are_read_and_exported_without_it(tmp_path, pipeline_folder):
    folder, out = tmp_path / "model", tmp_path / "out"
    pipe = DiffusionPipeline.from_pretrained(pipeline_folder)
    pipe.save_pretrained(folder, variant="fp16", max_shard_size="300KB")
    assert not list(folder.glob("*/model.safetensors"))
    backbone, sound = models.load(folder), models.load(pipeline_folder)
    for name, tensor in sound.net.state_dict().items():
        assert torch.equal(tensor, backbone.net.state_dict()[name])
    backbone.save(out, backbone.net)
    assert DiffusionPipeline.from_pretrained(out).text_encoder_3 is not None


def test_sd3_saved_without_t5_is_sd3_without_t5(tmp_path, pipeline_folder):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
    prompts = ["small red circle", "a blue square"]
    found = models.load(folder).encode(prompts).tensors
    expected = models.load(pipeline_folder, t5=False).encode(prompts).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["sd3", "auraflow", "wan", "lumina2", "zimage"])
def test_sizes_above_the_table_of_positions_are_refused(name, tmp_path):
    TINY[name].build(tmp_path / name)
    backbone: Backbone = models.load_meta(tmp_path / name, force=True, **TINY[name].options)
    with refuses("out-of-range"):
        backbone.latent_shape(16_384, 16_384)
    with refuses("out-of-range"):
        backbone.latent_shape(0, 64)


def test_a_moved_model_is_found_by_its_fingerprint(tmp_path, pipeline_folder, make_run):
    run, moved, other = make_run(), tmp_path / "moved", tmp_path / "other"
    identity = {"model": digest_model(pipeline_folder)}
    weights = store.student_weights(store.find(run, "last"))
    store.save(run / "checkpoints", 6, {"student": weights}, {"score": 0.1, "identity": identity})
    for folder in (moved, other):
        shutil.copytree(pipeline_folder, folder)
    damage(next((other / "vae").glob("*.safetensors")), "added")
    assert RunFolder.open(run, str(moved)).recipe.model.path == str(moved)
    with refuses("mismatch", other) as caught:
        RunFolder.open(run, str(other))
    assert str(run) in names_in(caught.value)
