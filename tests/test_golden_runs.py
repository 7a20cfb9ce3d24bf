"""Short runs come out as they did when they were recorded, and a run of version 0.1.0 goes on.

Where this machine's arithmetic is that of the recording, every figure and every tensor is the same
bit for bit; elsewhere the figures are, to four digits. `tests/golden.py` records the runs.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

import golden

RECORDED = json.loads(golden.FILE.read_text(encoding="utf-8"))
QUICK = ("full, fused", "lora, fused, 2 processes")


@pytest.fixture(scope="module")
def exact() -> bool:
    return golden.arithmetic() == RECORDED["arithmetic"]


def assert_same(run: dict[str, Any], recorded: dict[str, Any], *, exact: bool) -> None:
    """Same figures of the same steps; the same tensors too where arithmetic is the same."""
    assert [line["step"] for line in run["metrics"]] == [m["step"] for m in recorded["metrics"]]
    for line, expected in zip(run["metrics"], recorded["metrics"], strict=True):
        assert line == (expected if exact else pytest.approx(expected, rel=1e-4, abs=1e-5))
    assert run["files"].keys() == recorded["files"].keys()
    if exact:
        assert run["files"] == recorded["files"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in golden.RUNS],
)
def test_a_run_comes_out_as_recorded(name, exact):
    assert_same(golden.measure(name), RECORDED["runs"][name], exact=exact)


def test_a_run_that_version_0_1_0_began_ends_as_if_it_had_never_stopped(tmp_path, exact):
    """Its recipe has keys and addresses of that version; it stopped after step 2 of 4."""
    folder, recorded = tmp_path / "run", RECORDED["runs"]["lora, fused"]
    shutil.copytree(golden.FILE.parent / "run-of-0.1.0", folder)
    golden.launch(golden.recipe_of("lora, fused"), folder, 1, "--resume")
    run = golden.condensed(golden.read_run(folder))
    run, recorded = (
        whole | {"metrics": [line for line in whole["metrics"] if line["step"] > 2]}
        for whole in (run, recorded)
    )
    assert [line["step"] for line in run["metrics"]] == [3, 4]
    assert_same(run, recorded, exact=exact)
