"""Tracing a network with a cache of operations gives what tracing it without one gives."""

from __future__ import annotations

import pytest
import torch

from fewstep import models
from fewstep.config import Recipe
from fewstep.planning.memory_tracker import MetaTracker, OpCache
from fewstep.planning.trace import MetaNetworks, trace


def with_and_without_cache(recipe, with_gradients):
    backbone = models.load_meta(recipe.model.path, **recipe.model.options)
    for op_cache in (None, OpCache()):
        networks = MetaNetworks(recipe, backbone, op_cache=op_cache)
        yield trace(networks, batch=1, largest={"teacher": 2}, with_gradients=with_gradients)


@pytest.mark.parametrize(("mode", "with_gradients"), [("full", False), ("lora", True)])
def test_the_cache_changes_nothing(mode, with_gradients, pipeline_folder):
    recipe = Recipe.named("demo", [f"model.path={pipeline_folder}"])
    settings = {"student.mode": mode, "student.gradient_checkpointing": with_gradients}
    recipe = Recipe.from_values(dict(recipe), {"model.dtype": "bfloat16", **settings})
    plain, cached = with_and_without_cache(recipe, with_gradients)
    assert plain == cached and plain.flops > 0 and plain.graph > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3-medium", "sdxl-lora", "z-image-lora"])
def test_the_cache_changes_nothing_about_published_models(name):
    plain, cached = with_and_without_cache(Recipe.named(name), False)
    assert plain == cached


def test_cached_results_are_those_of_the_operation():
    """New tensors are made; views, changes in place and values are computed as ever."""
    op_cache, x = OpCache(), torch.empty(4, 6, device="meta", dtype=torch.bfloat16)
    for _ in range(2):
        with MetaTracker(op_cache) as tracker:
            assert (x * 2).dtype == torch.bfloat16
            assert (torch.ones(2, device="meta", dtype=torch.int64) * 2).dtype == torch.int64
            assert (torch.ones(2, device="meta", dtype=torch.int64) * 2.0).dtype == torch.float32
            assert x.transpose(0, 1).float().stride() == (1, 6)
            view = x.view(6, 4)
            assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            assert x.add_(1) is x
            assert [each.shape for each in torch.var_mean(x, dim=1)] == [(4,), (4,)]
            assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]
            x @ x.T
    assert tracker.flops == 2 * 4 * 6 * 4
    assert op_cache
