"""Sampling: pixels equal to the stock pipeline's, and a manifest that tells how they were made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from fewstep import models
from fewstep.inference.load import open_model
from fewstep.inference.sample import Sampler, sample_batch, sample_images, to_pixels, write_samples
from fewstep.utils.errors import FewstepError
from refusals import refuses

PROMPTS = ["small red circle left", "blue square on gray"]


@pytest.fixture(scope="module")
def backbone(pipeline_folder):
    return models.load(pipeline_folder, max_sequence_length=16)


@pytest.fixture(scope="module")
def stock(pipeline_folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt, steps, seed, guidance=1.0, sigmas=None):
    return pipe(
        prompt,
        sigmas=sigmas or [1 - i / steps for i in range(steps)],
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=16,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    ).images[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8])
def test_pixels_equal_the_stock_pipelines(backbone, stock, steps):
    images = sample_images(backbone, backbone.net, PROMPTS, sampler=Sampler(steps), seed=3)
    for i, prompt in enumerate(PROMPTS):
        expected = draw(stock, prompt, steps, 3 + i)
        assert torch.equal(images[i], expected)
        assert np.array_equal(np.array(to_pixels(images[i])), np.array(to_pixels(expected)))


def test_pixels_on_a_grid_of_the_students_own_equal_the_stock_pipelines(backbone, stock):
    sampler = Sampler(4, shift=1.5)
    assert sampler.sigmas(backbone).tolist() == pytest.approx([1, 9 / 11, 0.6, 1 / 3, 0])
    images = sample_images(backbone, backbone.net, PROMPTS[:1], sampler=sampler, seed=3)
    assert not torch.equal(images[0], draw(stock, PROMPTS[0], 4, 3))
    moved = StableDiffusion3Pipeline(
        **stock.components | {"scheduler": backbone.student_scheduler(1.5)}
    )
    moved.set_progress_bar_config(disable=True)
    assert torch.equal(images[0], draw(moved, PROMPTS[0], 4, 3))


def test_guidance_is_the_stock_pipelines_up_to_rounding(backbone, stock):
    images = sample_images(backbone, backbone.net, PROMPTS[:1], sampler=Sampler(3, 4.5), seed=5)
    assert torch.allclose(images[0], draw(stock, PROMPTS[0], 3, 5, 4.5), atol=1e-4)


def test_batches_change_nothing_but_the_last_bits(backbone):
    seeds = [11, 4, 7]
    prompts = [*PROMPTS, PROMPTS[0]]
    one = sample_batch(backbone, backbone.net, prompts, seeds, sampler=Sampler(), batch=1)
    all_at_once = sample_batch(backbone, backbone.net, prompts, seeds, sampler=Sampler(), batch=3)
    assert torch.allclose(one, all_at_once, atol=1e-4)


def test_rounding_is_that_of_diffusers(stock):
    image = torch.linspace(-0.1, 1.1, 3 * 64 * 64).reshape(3, 64, 64)
    expected = stock.image_processor.numpy_to_pil(
        stock.image_processor.pt_to_numpy(image.clamp(0, 1)[None])
    )[0]
    assert np.array_equal(np.array(to_pixels(image)), np.array(expected))


def test_evaluations_equal_calls(backbone):
    calls = []
    hook = backbone.net.register_forward_hook(lambda *_: calls.append(1))
    for sampler in (Sampler(3), Sampler(2, 4.0)):
        calls.clear()
        sample_batch(backbone, backbone.net, PROMPTS[:1], [0], sampler=sampler)
        assert len(calls) == sampler.evaluations(backbone)
    hook.remove()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1001}, {"guidance": 0.5}])
def test_meaningless_settings_are_refused(wrong):
    with pytest.raises(FewstepError):
        Sampler(**wrong)


def test_a_size_that_does_not_fit_is_refused(backbone):
    with refuses("out-of-range"):
        sample_images(backbone, backbone.net, PROMPTS[:1], sampler=Sampler(height=60, width=64))


def test_files_and_manifest_agree(pipeline_folder, tmp_path):
    model = open_model(pipeline_folder, max_sequence_length=16)
    prompts = ["<script>alert(1)</script> ../../etc", ""]
    rows = list(write_samples(model, prompts, tmp_path / "out", sampler=Sampler(2), seed=9))
    lines = (tmp_path / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    for i, row in enumerate(rows):
        assert (row["prompt"], row["seed"], row["steps"]) == (prompts[i], 9 + i, 2)
        assert row["base_sigmas"] == [1.0, 0.5] and row["sigmas"] == [1.0, 0.75, 0.0]
        assert row["guidance"] == 1.0 and row["seconds"] > 0
        assert "/" not in row["file"] and (row["height"], row["width"]) == (64, 64)
        image = sample_images(
            model.backbone, model.net, [prompts[i]], sampler=Sampler(2), seed=9 + i
        )[0]
        with Image.open(tmp_path / "out" / row["file"]) as saved:
            assert np.array_equal(np.array(saved), np.array(to_pixels(image)))


def test_a_run_is_sampled_from_the_checkpoint_asked_for(make_run):
    run = make_run()
    drawn = {}
    for which in (None, "best", "last", "4"):
        model = open_model(run, which=which)
        assert model.size == (64, 64)
        drawn[which] = sample_images(model.backbone, model.net, PROMPTS[:1])
    assert torch.equal(drawn[None], drawn["best"])
    assert torch.equal(drawn["last"], drawn["4"])
    assert not torch.equal(drawn["best"], drawn["last"])


@pytest.mark.parametrize(("which", "code"), [("bets", "unknown-name"), ("3", "missing-file")])
def test_a_checkpoint_that_is_not_there_is_refused(make_run, which, code):
    with refuses(code):
        open_model(make_run(), which=which)


def test_half_precision_draws_about_the_same(pipeline_folder):
    models = [
        open_model(pipeline_folder, dtype=dtype, max_sequence_length=16)
        for dtype in ("float32", "bfloat16")
    ]
    full, half = (sample_images(model.backbone, model.net, PROMPTS[:1]) for model in models)
    assert full.dtype == half.dtype == torch.float32
    assert (full - half).abs().mean() < 0.05


def test_an_earlier_result_stays_until_the_new_one_is_whole(pipeline_folder, tmp_path):
    model, out = open_model(pipeline_folder, device="cpu", max_sequence_length=16), tmp_path / "out"
    list(write_samples(model, PROMPTS, out, sampler=Sampler(1), seed=1))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    drawing = write_samples(model, PROMPTS, out, sampler=Sampler(1), seed=2)
    next(drawing)
    drawing.close()  # as an error or Ctrl-C ends it
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    list(write_samples(model, PROMPTS, out, sampler=Sampler(1), seed=2))
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("name", ["manifest.jsonl", "0001-blue-square-on-gray.png"])
def test_only_its_own_files_are_replaced(name, pipeline_folder, tmp_path):
    model = open_model(pipeline_folder, device="cpu", max_sequence_length=16)
    (tmp_path / name).write_text('{"file": "mine"}\n')
    with refuses("exists", tmp_path / name):
        list(write_samples(model, PROMPTS, tmp_path, sampler=Sampler(1)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"file": "mine"}\n'


def test_a_folder_in_which_nothing_was_drawn_is_not_left(pipeline_folder, tmp_path):
    model = open_model(pipeline_folder, device="cpu", max_sequence_length=16)
    with refuses("out-of-range"):
        list(write_samples(model, PROMPTS, tmp_path / "out", sampler=Sampler(1, height=63)))
    assert list(tmp_path.iterdir()) == []
