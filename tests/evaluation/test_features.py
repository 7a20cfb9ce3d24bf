"""Feature spaces: bounded, found by name, and known by a key that changes with them."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fewstep.evaluation import features
from fewstep.utils.errors import FewstepError

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_the_mosaic_is_the_mean_colour_of_its_tiles():
    found = features.load("pixels")(IMAGES)
    assert found.shape == (3, 192)
    assert torch.allclose(found[0, 0], IMAGES[0, 0, :8, :8].mean())
    assert torch.equal(features.load("pixels")(IMAGES * 5)[0] <= 1, torch.ones(192).bool())


def test_a_clip_model_is_used_from_its_folder(clip_folder):
    space = features.load(f"clip:{clip_folder}")
    found = space(IMAGES)
    assert found.shape == (3, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert space.key == features.load(f"clip:{clip_folder}").key


def test_batches_change_nothing():
    space = features.load("pixels")
    assert torch.equal(torch.cat([space(IMAGES[:1]), space(IMAGES[1:])]), space(IMAGES))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pixel", "unknown-name"),
        ("pixels:there", "invalid"),
        ("clip", "invalid"),
        ("clip:./nowhere/at all", "missing-file"),
    ],
)
def test_mistakes_are_refused(name, code):
    with pytest.raises(FewstepError) as refused:
        features.load(name)
    assert refused.value.code == code
