"""Wan: videos, the grid that its stock pipeline walks, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from PIL import Image

from fewstep import models
from fewstep.core.schedules import few_step_sigmas, with_shift
from fewstep.inference.load import Model
from fewstep.inference.sample import Sampler, default_size, sample_frames, to_pixels, write_samples
from fewstep.utils.errors import FewstepError
from tiny.wan import wan

SIZE = (64, 96)
PROMPT = "small red circle left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "pipeline"
    wan.build(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return models.load(folder, **wan.options)


@pytest.fixture(scope="module")
def pipe(folder, backbone):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = backbone.student_scheduler()
    return pipe


def frames_of(backbone, seed=0):
    return sample_frames(backbone, backbone.net, PROMPT, seed, sampler=Sampler(4, 1.0, *SIZE))


def test_a_video_is_the_stock_pipelines(backbone, pipe):
    call = backbone.stock_call(few_step_sigmas(4), *SIZE) | {"output_type": "np"}
    expected = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(0), **call).frames[0]
    found = frames_of(backbone)
    assert found.shape == (5, 3, *SIZE)
    assert (found - torch.from_numpy(expected).permute(0, 3, 1, 2)).abs().max() < 1e-4


def test_a_picture_is_the_middle_frame(backbone):
    latents = backbone.draw_noise([0, 1], *SIZE)
    with torch.no_grad():
        pictures, videos = backbone.decode(latents), backbone.decode_video(latents)
    assert videos.shape == (2, 3, 5, *SIZE) and videos.dtype == torch.float32
    assert torch.equal(pictures, videos[:, :, 2])
    assert not torch.equal(videos[:, :, 2], videos[:, :, 3])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_stock_pipeline_walks_our_grid_at_any_number_of_steps(backbone, pipe, steps):
    pipe(
        prompt=PROMPT,
        **backbone.stock_call(few_step_sigmas(steps), *SIZE) | {"output_type": "latent"},
    )
    grid = with_shift(torch.tensor(few_step_sigmas(steps)), backbone.shift(*SIZE))
    assert torch.allclose(pipe.scheduler.sigmas.float(), grid)


def test_the_shift_goes_by_either_name(folder, backbone):
    other = models.load(folder, **wan.options)
    other.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert backbone.shift(*SIZE).shift == 3.0
    assert other.shift(*SIZE).shift == other.student_scheduler().config.shift == 5.0


def test_a_saved_student_walks_the_grid_by_itself(backbone, tmp_path):
    backbone.save(tmp_path / "student", backbone.net)
    pipe = WanPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(
        prompt=PROMPT, generator=generator, **backbone.stock_call(few_step_sigmas(4), *SIZE)
    ).frames[0]
    ours = [np.array(to_pixels(frame)).astype(int) for frame in frames_of(backbone)]
    for frame, expected in zip(drawn, ours, strict=True):
        assert np.abs(np.array(frame).astype(int) - expected).max() <= 1
    again = models.load(tmp_path / "student", **wan.options)
    assert again.shift(*SIZE) == backbone.shift(*SIZE)


def test_samples_are_animations(backbone, tmp_path):
    model = Model(backbone, backbone.net, "tiny", SIZE)
    sampler = Sampler(2, 1.0, *SIZE)
    [row] = write_samples(model, [PROMPT], tmp_path, sampler=sampler)
    assert row["file"].endswith(".webp")
    with Image.open(tmp_path / row["file"]) as animation:
        assert animation.n_frames == 5
        assert animation.size == SIZE[::-1]


def test_the_stock_size_is_the_default(backbone):
    assert default_size(backbone) == (480, 832)


@pytest.mark.parametrize("frames", [0, 4, 6])
def test_frames_that_do_not_fit_are_refused(folder, frames):
    with pytest.raises(FewstepError) as caught:
        models.load(folder, frames=frames)
    assert caught.value.code == "out-of-range"


def test_sizes_that_do_not_fit_are_refused(backbone):
    with pytest.raises(FewstepError) as caught:
        backbone.latent_shape(64, 72)
    assert caught.value.code == "out-of-range"


def test_two_denoisers_are_refused(folder, tmp_path, backbone):
    backbone.save(tmp_path / "two", backbone.net)
    index = tmp_path / "two" / "model_index.json"
    content = json.loads(index.read_text()) | {"boundary_ratio": 0.9}
    index.write_text(json.dumps(content))
    with pytest.raises(FewstepError) as caught:
        models.load(tmp_path / "two")
    assert caught.value.code == "unsupported"
