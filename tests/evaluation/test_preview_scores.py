"""Ratings of previews: higher is better, and a checkpoint is rated by what it shows."""

from __future__ import annotations

import pytest
import torch

from fewstep.evaluation import preview_score
from fewstep.evaluation.oracles import Scenes
from fewstep.toyworld.scenes import distinct_prompts
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

CAPTIONS = [str(prompt) for prompt in distinct_prompts(48, 1, held_out=True)]
NAMES = ["closeness", "right", "right_and_close"]


@pytest.mark.parametrize("name", NAMES)
def test_real_pictures_beat_blurred_ones(name):
    if (
        "right_and" in name
        and not resolve("package://fewstep.toyworld/data/features.safetensors").is_file()
    ):
        pytest.skip("the world's feature net is not in this checkout")
    truth = Scenes()
    good, reference = truth.draw(CAPTIONS, 0), truth.draw(CAPTIONS, 1)
    blurred = torch.nn.functional.avg_pool2d(good, 31, stride=1, padding=15)
    score = preview_score(name)
    assert score(good, CAPTIONS, reference) > score(blurred, CAPTIONS, reference) + 0.1


def test_the_trainer_can_import_them_by_their_path():
    from fewstep.train.monitor.previews import preview_score as trainers

    assert trainers("fewstep.evaluation.preview_scores:closeness") is preview_score("closeness")


def test_an_unknown_rating_is_named():
    with pytest.raises(FewstepError, match="did you mean 'closeness'"):
        preview_score("closenes")
