"""What `load` and `open` give: its defaults, and the very pictures of the stock pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import fewstep

PROMPTS = ["small red circle left", "blue square on gray"]


@pytest.fixture(scope="module")
def teacher(pipeline_folder):
    return fewstep.load(pipeline_folder, device="cpu", max_sequence_length=16)


def same(one, other, most=0):
    return np.abs(np.array(one, int) - np.array(other, int)).max() <= most


@pytest.mark.parametrize(("steps", "guidance"), [(3, 4.5), (None, None)])
def test_a_teacher_is_drawn_as_the_stock_pipeline_draws(teacher, pipeline_folder, steps, guidance):
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    given = {name: value for name, value in settings.items() if value is not None}
    count = steps or 28
    expected = pipe(
        PROMPTS[1],
        sigmas=[1 - i / count for i in range(count)],
        max_sequence_length=16,
        generator=torch.Generator("cpu").manual_seed(6),
        **given,
    ).images[0]
    images = teacher.sample(PROMPTS, steps=steps, guidance=guidance, seed=5)
    assert len(images) == 2 and same(images[1], expected, most=1)


def test_one_prompt_may_be_given_as_it_is(teacher):
    (image,) = teacher.sample(PROMPTS[0], steps=1, height=64, width=96)
    assert image.size == (96, 64)
    (listed,) = teacher.sample(PROMPTS[:1], steps=1, height=64, width=96)
    assert same(image, listed)


def test_batches_change_nothing_but_rounding(teacher):
    one, many = (teacher.sample(PROMPTS, steps=2, batch=batch) for batch in (1, 2))
    assert all(same(a, b, most=1) for a, b in zip(one, many, strict=True))


def test_a_student_is_drawn_in_four_steps_without_guidance(make_run):
    student = fewstep.open(make_run())
    (drawn,) = student.sample(PROMPTS[0])
    assert same(drawn, student.sample(PROMPTS[0], steps=4, guidance=1.0)[0])
    assert not same(drawn, student.sample(PROMPTS[0], guidance=4.0)[0])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"guidance": 0.0}, {"height": 60}])
def test_settings_that_mean_nothing_are_refused(teacher, wrong):
    with pytest.raises(fewstep.FewstepError) as caught:
        teacher.sample(PROMPTS[0], **wrong)
    assert caught.value.code == "out-of-range"
