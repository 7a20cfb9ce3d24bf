"""The bench counts what the docs say; it is never timed here."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "bench" / "step.py"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_step", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_step", module)
    spec.loader.exec_module(module)
    return module


def test_grids_cover_the_published_law(bench):
    for updates in (7, 14, 28):
        grids = [bench.grids_of(number, updates) for number in range(updates)]
        assert all(sum(pair) == 29 and min(pair) >= 1 for pair in grids)
    assert sorted(sum((bench.grids_of(i, 14) for i in range(14)), ())) == [*range(1, 29)]


@pytest.mark.parametrize("backbone", [None, "flux"])
def test_work_is_counted_from_the_calls(bench, backbone, tmp_path):
    args = argparse.Namespace(backbone=backbone, mode="full", updates=1, batch=4, device="cpu")
    found = bench.measure(args, tmp_path)
    assert found["plain"]["work"] == 50
    # The mean; where four samples' anchors fall moves it.
    assert found["fused"]["work"] == pytest.approx(32.5, abs=4)
    assert found["work_ratio"] == pytest.approx(found["fused"]["work"] / 50, abs=1e-3)
