"""LoRAs of other programs fused into a model: in each format, the weights become W + scale BA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep import models
from fewstep.utils.pretrained import LoraFile, Pretrained
from refusals import names_in, refuses
from tiny import discover

TINY = discover()
RANK, ALPHA, SCALE = 2, 1.0, 0.5
Pairs = dict[str, tuple[Tensor, Tensor]]


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("auraflow", "qwenimage", "zimage", "wan", "flux2", "klein")
]


@pytest.fixture(scope="module", params=["sd3", "flux", "sdxl", *SLOW])
def model(request, tmp_path_factory):
    return _built(TINY[request.param], tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return _built(TINY["sd3"], tmp_path_factory.mktemp("sd3") / "model")


def _built(tiny, folder):
    tiny.build(folder)
    return tiny, folder, models.load(folder, **tiny.options)


def _pairs(backbone, rank: int = RANK) -> Pairs:
    """A LoRA of every layer that fewstep adapts."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name in backbone.lora_targets(backbone.net):
        out, into = backbone.net.get_submodule(name).weight.shape
        down, up = (torch.randn(size, generator=generator) for size in ((rank, into), (out, rank)))
        pairs[name] = down, up
    return pairs


def _of_diffusers(backbone, pairs: Pairs) -> dict[str, Tensor]:
    return {
        f"{backbone.net_name}.{name}.lora_{side}.weight": each
        for name, pair in pairs.items()
        for side, each in zip("AB", pair, strict=True)
    }


def _with_alphas(backbone, pairs: Pairs) -> dict[str, Tensor]:
    alphas = {f"{backbone.net_name}.{name}.alpha": torch.tensor(ALPHA) for name in pairs}
    return _of_diffusers(backbone, pairs) | alphas


def _of_comfyui(backbone, pairs: Pairs) -> dict[str, Tensor]:
    """Names that ComfyUI maps; of SDXL those of kohya, with the rank as alpha."""
    prefix = f"{backbone.net_name}."
    plain = {key.removeprefix(prefix): x for key, x in _of_diffusers(backbone, pairs).items()}
    return backbone.comfyui_lora(plain)


def _expected(backbone, pairs: Pairs, factor: float) -> dict[str, Tensor]:
    weights = {name: each.detach().clone() for name, each in backbone.net.named_parameters()}
    for name, (down, up) in pairs.items():
        weights[f"{name}.weight"] += SCALE * factor * (up @ down)
    return weights


def _fused(tiny, folder, file: Path, scale: float = SCALE):
    return models.load(Pretrained(str(folder), loras=(LoraFile(str(file), scale),)), **tiny.options)


@pytest.mark.parametrize(
    ("written", "factor"),
    [(_of_diffusers, 1.0), (_with_alphas, ALPHA / RANK), (_of_comfyui, 1.0)],
)
def test_fused_weights_are_base_plus_scale_times_ba(model, written, factor, tmp_path):
    tiny, folder, backbone = model
    pairs = _pairs(backbone)
    file = tmp_path / "style.safetensors"
    save_file({k: x.contiguous() for k, x in written(backbone, pairs).items()}, file)
    fused = dict(_fused(tiny, folder, file).net.named_parameters())
    for name, expected in _expected(backbone, pairs, factor).items():
        torch.testing.assert_close(fused[name].detach(), expected)


def test_a_folder_of_peft_has_its_scale_in_a_file_beside_it(sd3, tmp_path):
    tiny, folder, backbone = sd3
    pairs = _pairs(backbone)
    named = {
        f"base_model.model.{key.removeprefix('transformer.')}": x
        for key, x in _of_diffusers(backbone, pairs).items()
    }
    save_file(named, tmp_path / "adapter_model.safetensors")
    with refuses("missing-file", tmp_path):  # without it the scale is not known
        _fused(tiny, folder, tmp_path)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {"ff.net.2": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    fused = dict(_fused(tiny, folder, tmp_path).net.named_parameters())
    expected = _expected(backbone, pairs, ALPHA / RANK)
    for name in (name for name in pairs if not name.endswith("ff.net.2")):
        torch.testing.assert_close(fused[f"{name}.weight"].detach(), expected[f"{name}.weight"])
    odd = next(name for name in pairs if name.endswith("ff.net.2"))
    eightfold = _expected(backbone, pairs, 8 / RANK)[f"{odd}.weight"]
    torch.testing.assert_close(fused[f"{odd}.weight"].detach(), eightfold)


def test_several_loras_add_up_and_leave_again_with_the_opposite_scale(sd3, tmp_path):
    tiny, folder, backbone = sd3
    file = tmp_path / "style.safetensors"
    save_file(_of_diffusers(backbone, _pairs(backbone)), file)
    both = Pretrained(str(folder), loras=(LoraFile(str(file), 0.75), LoraFile(str(file), -0.75)))
    fused = models.load(both, **tiny.options)
    for name, each in backbone.net.named_parameters():
        torch.testing.assert_close(dict(fused.net.named_parameters())[name], each)


def test_what_matches_nothing_is_refused_before_any_weight_is_read(sd3, tmp_path):
    tiny, folder, backbone = sd3
    pairs = _pairs(backbone)
    other = tmp_path / "other.safetensors"
    first = next(iter(pairs))

    def refused(code, tensors) -> set[str]:
        save_file({key: x.clone() for key, x in tensors.items()}, other)
        address = Pretrained(str(folder), loras=(LoraFile(str(other)),))
        with refuses(code, other) as caught:
            models.load_meta(address, **tiny.options)
        return names_in(caught.value)

    renamed = {f"nowhere.{name}": pair for name, pair in pairs.items()}
    assert {str(len(pairs)), "of"} <= refused("mismatch", _of_diffusers(backbone, renamed))
    one_more = pairs | {"nowhere": pairs[first]}
    assert {"1", str(len(one_more))} <= refused("mismatch", _of_diffusers(backbone, one_more))
    wide = {**pairs, first: (torch.ones(RANK, 3), torch.ones(3, RANK))}
    assert f"transformer.{first}" in refused("mismatch", _of_diffusers(backbone, wide))
    kohya = {f"lora_unet_{k}": x for k, x in _of_diffusers(backbone, pairs).items()}
    refused("mismatch", kohya)
    dora = {f"transformer.{first}.dora_scale": torch.ones(3)}
    assert f"transformer.{first}.dora_scale" in refused("unsupported", dora)


def test_a_missing_or_pickled_lora_is_refused(sd3, tmp_path):
    tiny, folder, _ = sd3
    (tmp_path / "pickled.pt").write_bytes(b"x")
    for name, code in (("nowhere.safetensors", "missing-file"), ("pickled.pt", "unsupported")):
        with refuses(code, tmp_path / name):
            _fused(tiny, folder, tmp_path / name)


def test_a_lora_that_makes_few_steps_makes_no_teacher(sd3, tmp_path):
    tiny, folder, backbone = sd3
    file = tmp_path / "hyper-sd-8steps-lora.safetensors"
    save_file(_of_diffusers(backbone, _pairs(backbone)), file)
    with refuses("distilled-teacher", file):
        _fused(tiny, folder, file)
