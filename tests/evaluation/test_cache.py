"""Measurements in files."""

from __future__ import annotations

import pytest
import torch

from fewstep.evaluation.cache import FeatureCache, load_measurements, save_measurements
from fewstep.evaluation.metrics.base import FEATURES, Measurements, Values


@pytest.fixture
def measurements():
    generator = torch.Generator().manual_seed(0)
    flags = torch.tensor([[1, 0], [2, 1]], dtype=torch.uint8)
    points = torch.rand(2, 4, generator=generator), torch.rand(1, 2, 4, generator=generator)
    return Measurements({FEATURES: Values(*points), "my.flags": Values(flags, flags[None])})


def same(first, second):
    assert first.values.keys() == second.values.keys()
    for name, values in first.values.items():
        assert torch.equal(values.single, second.values[name].single)
        assert torch.equal(values.repeated, second.values[name].repeated)


def test_what_was_kept_comes_back_whole(measurements, tmp_path):
    FeatureCache(tmp_path / "own").keep("key", measurements)
    loaded, made = FeatureCache(tmp_path / "own").find("key")
    same(loaded, measurements)
    assert made["where"] == "cache" and {"date", "hardware"} <= made.keys()
    assert FeatureCache(tmp_path / "own").find("other") is None


def test_what_came_with_a_model_is_taken_first_and_never_written(measurements, tmp_path):
    save_measurements(tmp_path / "shipped" / "key.safetensors", measurements)
    before = sorted((tmp_path / "shipped").iterdir())
    cache = FeatureCache(tmp_path / "own", tmp_path / "shipped")
    cache.keep("key", measurements)
    cache.keep("more", measurements)
    assert [cache.find(key)[1]["where"] for key in ("key", "more")] == ["shipped", "cache"]
    assert sorted((tmp_path / "shipped").iterdir()) == before


def test_compact_files_are_half_as_large_and_nearly_the_same(tmp_path):
    points = torch.rand(500, 64, generator=torch.Generator().manual_seed(0))
    measurements = Measurements({FEATURES: Values(points, points[:, None])})
    sizes = []
    for compact in (False, True):
        save_measurements(tmp_path / "file", measurements, compact=compact, seed=7)
        sizes.append((tmp_path / "file").stat().st_size)
    assert sizes[1] < 0.51 * sizes[0]
    loaded, made = load_measurements(tmp_path / "file")
    assert loaded.features.single.dtype == torch.float32 and made["seed"] == 7
    assert torch.allclose(loaded.features.single, points, atol=1e-3)


def test_a_torn_file_is_as_good_as_none(measurements, tmp_path):
    cache = FeatureCache(tmp_path)
    cache.keep("key", measurements)
    file = tmp_path / "key.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert cache.find("key") is None


def test_a_disk_that_refuses_costs_nothing_but_time(measurements, tmp_path):
    (tmp_path / "file").write_text("no folder")
    FeatureCache(tmp_path / "file").keep("key", measurements)
