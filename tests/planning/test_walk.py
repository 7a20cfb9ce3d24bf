"""Walking through a network with what is known of its operations is walking through it."""

from __future__ import annotations

import pytest
import torch

import published
from fewstep import models, recipes
from fewstep.config import load_recipe
from fewstep.planning.evaluations import Asked
from fewstep.planning.trace import trace
from fewstep.planning.variants import changed
from fewstep.planning.walk import OpCache, Walk

ASKED = Asked(teacher=2, fake_teacher=1)


def both(recipe, growing):
    """The same call's needs, every operation worked out, and few of them."""
    outline = models.load_meta(recipe.model.path, **recipe.model.options)
    for known in (None, OpCache()):
        yield trace(recipe, outline, batch=1, asked=ASKED, growing=growing, known=known)


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("growing", [False, True])
def test_what_is_known_changes_nothing(mode, growing, pipeline_folder):
    recipe = load_recipe(recipes.find("demo"), [f"model.path={pipeline_folder}"], files=False)
    recipe = changed(recipe, {"student.mode": mode, "student.gradient_checkpointing": growing})
    plain, fast = both(changed(recipe, {"model.dtype": "bfloat16"}), growing)
    assert plain == fast and plain.flops > 0 and plain.graph > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3-medium", "sdxl-lora", "z-image-lora"])
def test_what_is_known_changes_nothing_about_published_models(name, tmp_path):
    path = load_recipe(recipes.find(name), files=False).model.path
    folder = published.write(path, tmp_path)
    recipe = load_recipe(recipes.find(name), [f"model.path={folder}"], files=False)
    plain, fast = both(recipe, False)
    assert plain == fast


def test_answers_are_those_of_the_operation():
    """Fresh tensors are made; views, changes in place and values go their own way."""
    known, x = OpCache(), torch.empty(4, 6, device="meta", dtype=torch.bfloat16)
    for _ in range(2):
        with Walk(known) as walk:
            assert (x * 2).dtype == torch.bfloat16
            assert (torch.ones(2, device="meta", dtype=torch.int64) * 2).dtype == torch.int64
            assert (torch.ones(2, device="meta", dtype=torch.int64) * 2.0).dtype == torch.float32
            assert x.transpose(0, 1).float().stride() == (1, 6)
            assert x.view(6, 4).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert x.add_(1) is x
            assert [each.shape for each in torch.var_mean(x, dim=1)] == [(4,), (4,)]
            assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]
            x @ x.T
    assert walk.flops == 2 * 4 * 6 * 4
    assert known.answers
