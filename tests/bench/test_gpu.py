"""The measurement for GPUs, at toy size: everything but the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_every_part_runs_at_toy_size():
    pytest.importorskip("torchao")
    before = sorted((ROOT / "bench" / "results").glob("gpu-*"))
    done = run("--tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tiny"] and found["hardware"]["cpu"]
    assert sorted((ROOT / "bench" / "results").glob("gpu-*")) == before
    parts = found["parts"]
    assert not {name: part["error"] for name, part in parts.items() if "error" in part}
    assert set(parts) == {"speed", "matmul", "full", "lora", "flux", "flux_bf16"}
    for kind in ("plain", "fused", "compiled"):
        side = parts["speed"][kind]
        assert side["seconds_per_update"] > 0 and side["tflops"] > 0
        assert found["share_of_peak"][kind] >= 0
    assert parts["speed"]["fused"]["work"] < parts["speed"]["plain"]["work"]
    assert parts["speed"]["compiled"]["work"] == parts["speed"]["fused"]["work"]
    for name, criterion in {"full": 76, "lora": 12, "flux": 16, "flux_bf16": 40}.items():
        part = parts[name]
        assert part["criterion_gb"] == criterion and part["peak_gb"] > 0 and part["planned_gb"] > 0
        assert part["criterion_met"] is None  # of a processor's memory it says nothing
        assert len(part["iteration_seconds"]) == 4


@pytest.mark.slow
def test_it_says_what_it_needs():
    assert "there is no GPU" in run("--parts", "matmul").stderr
    assert "there is no 'speeed'" in run("--tiny", "--parts", "speeed").stderr
