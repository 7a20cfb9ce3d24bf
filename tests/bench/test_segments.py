"""Which step loses: plans walk the grid of the sampler, and one that is none is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from fewstep import models
from fewstep.inference.sample import Sampler
from fewstep.utils.resources import resolve

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "segments.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("segments", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shift", [None, 1.2])
@pytest.mark.parametrize(("plan", "steps"), [("SSSS", 4), ("TTTT", 8), ("3333", 12)])
def test_segments_join_to_the_grid_of_the_sampler(script, plan, steps, shift):
    backbone = models.load(resolve("package://fewstep.toyworld/data/pipeline"))
    walks = script.segments(backbone, (64, 64), plan, 2, shift=shift)
    joined = torch.cat([*(walk[:-1] for walk in walks), walks[-1][-1:]])
    expected = Sampler(steps, shift=shift).sigmas(backbone)
    assert torch.allclose(joined, expected, atol=1e-6)


def test_a_plan_that_is_none_is_refused_before_anything_is_read(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segments.py", "nowhere", "SSX"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert "SSX" in capsys.readouterr().err
