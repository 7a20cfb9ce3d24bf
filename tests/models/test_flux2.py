"""FLUX.2: the shift of four steps at any number of steps, and folders without torchvision."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from transformers.utils.import_utils import is_torchvision_available

from fewstep import models
from fewstep.core.schedules import few_step_sigmas, with_shift
from fewstep.utils.errors import FewstepError
from tiny import flux2

SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux2") / "pipeline"
    flux2.flux2.build(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return models.load(folder, **flux2.flux2.options)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_stock_pipeline_walks_our_grid_at_any_number_of_steps(backbone, folder, steps):
    pipe = Flux2Pipeline.from_pretrained(folder, **backbone.load_overrides(folder))
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt="a circle",
        output_type="latent",
        **backbone.stock_call(few_step_sigmas(steps), *SIZE),
    )
    base = torch.tensor(few_step_sigmas(steps))
    assert torch.allclose(pipe.scheduler.sigmas, with_shift(base, backbone.shift(*SIZE)))


def test_the_shift_is_that_of_the_named_number_of_steps(folder, backbone):
    fifty = models.load(folder, shift_steps=50)
    assert backbone.shift(1024, 1024).mu == compute_empirical_mu(512 * 512 // 4, 4)
    assert backbone.shift(*SIZE).mu == pytest.approx(compute_empirical_mu(64, 4))
    assert fifty.shift(*SIZE).mu == pytest.approx(compute_empirical_mu(64, 50))
    assert fifty.shift(*SIZE).mu < backbone.shift(*SIZE).mu
    with pytest.raises(FewstepError) as caught:
        models.load(folder, shift_steps=0)
    assert caught.value.code == "out-of-range"


def test_the_guidance_input_is_the_stock_pipelines_or_the_one_asked_for(folder, backbone):
    assert backbone.encode(["", ""]).tensors["guidance"].tolist() == [4.0, 4.0]
    other = models.load(folder, guidance=2.5)
    assert other.null(1).tensors["guidance"].tolist() == [2.5]
    assert other.stock_call(few_step_sigmas(4), *SIZE)["guidance_scale"] == 2.5


@pytest.mark.skipif(is_torchvision_available(), reason="the processor itself is there")
def test_a_processor_that_needs_torchvision_is_done_without(folder, backbone, tmp_path):
    """The published folder names a PixtralProcessor; its tokenizer encodes text as it does."""
    backbone.save(tmp_path / "published", backbone.net)
    index = tmp_path / "published" / "model_index.json"
    content = json.loads(index.read_text())
    content["tokenizer"] = ["transformers", "PixtralProcessor"]
    index.write_text(json.dumps(content))
    again = models.load(tmp_path / "published", **flux2.flux2.options)
    prompts = ["a small red circle", "a blue square and a large pink cross"]
    for name, tensor in backbone.encode(prompts).tensors.items():
        assert torch.equal(again.encode(prompts).tensors[name], tensor)


def test_a_distilled_klein_has_no_guidance(tmp_path):
    flux2.klein.build(tmp_path / "klein")
    base = models.load(tmp_path / "klein")
    assert base.default_guidance == 4.0
    base.pipe.register_to_config(is_distilled=True)
    assert base.default_guidance == 1.0


@pytest.mark.parametrize("tiny", [flux2.flux2, flux2.klein], ids=lambda tiny: tiny.name)
def test_a_prompt_is_overlong_once_its_end_changes_nothing(tiny, tmp_path):
    tiny.build(tmp_path / "pipeline")
    backbone = models.load(tmp_path / "pipeline", **tiny.options)
    words = ["red", "blue", "green"] * 40
    for count in range(1, len(words)):
        if backbone.overlong([" ".join(words[:count])]) == [True]:
            break
    fits, cut, longer = (" ".join(words[:n]) for n in (count - 1, count, count + 1))
    assert backbone.overlong([fits, cut, longer]) == [False, True, True]
    inside = [backbone.encode([text]).tensors["prompt_embeds"] for text in (fits, cut)]
    assert not torch.equal(*inside)
    far = [" ".join(words[: count + n]) for n in (9, 12)]
    assert torch.equal(*(backbone.encode([text]).tensors["prompt_embeds"] for text in far))
    assert backbone.overlong([]) == []
