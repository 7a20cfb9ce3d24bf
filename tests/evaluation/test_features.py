"""Feature spaces: bounded, found by name, and known by a key that changes with them."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fewstep.evaluation import features
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

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
    found = features.extract(space, IMAGES, batch=2)
    assert found.shape == (3, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert space.key == features.load(f"clip:{clip_folder}").key


def test_batches_change_nothing():
    space = features.load("pixels")
    assert torch.equal(
        features.extract(space, IMAGES, batch=1), features.extract(space, IMAGES, batch=64)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixel", "did you mean 'pixels'"),
        ("pixels:there", "takes no source"),
        ("clip", "clip:SOURCE"),
        ("clip:/nowhere/at all", "cannot be loaded"),
    ],
)
def test_mistakes_are_named(name, message):
    with pytest.raises(FewstepError, match=message):
        features.load(name)


@pytest.mark.skipif(
    not resolve("package://fewstep.toyworld/data/features.safetensors").is_file(),
    reason="the world's feature net is not in this checkout",
)
def test_saturation_moves_the_worlds_features_less_than_another_scene():
    from fewstep.evaluation.oracles import Scenes

    images = Scenes().draw(["small red circle left on gray", "large blue square right"] * 8, 0)
    space = features.load("world")
    plain, loud = space(images), space((images - 0.5) * 1.3 + 0.5)
    assert plain.abs().max() <= 1
    other = (plain[0::2] - plain[1::2]).norm(dim=1).mean()
    assert (plain - loud).norm(dim=1).mean() < 0.5 * other
