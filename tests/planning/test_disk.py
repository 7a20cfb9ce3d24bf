"""A run's checkpoints are as large, and as many, as was planned, to the byte."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from fewstep import cli
from fewstep.config import Recipe
from fewstep.planning.dry_run import dry_run
from fewstep.train import distill

EIGHT_BITS = {f"{role}.optimizer.name": "adamw8bit" for role in ("student", "fake_teacher")}


@pytest.mark.parametrize(
    "settings",
    [
        {"student.mode": "full"},
        {"student.mode": "full", "ema": None},
        {"student.mode": "lora", "student.lora": {"rank": 4}},
        {"student.mode": "full", **EIGHT_BITS},
        {"student.mode": "full", "memory.trained_dtype": "bfloat16", "model.dtype": "bfloat16"},
        {"student.mode": "lora", "model.dtype": "bfloat16", **EIGHT_BITS},
    ],
    ids=["full", "no EMA", "LoRA", "8-bit moments", "bfloat16 weights", "LoRA, 8-bit moments"],
)
def test_checkpoints_have_the_planned_bytes(settings, pipeline_folder, recipe_of, tmp_path):
    """Weights once and in their own precision, moments as they are, and nothing that is frozen."""
    if any("bit" in str(value) or "bfloat16" in str(value) for value in settings.values()):
        pytest.importorskip("torchao")
    quick = {
        "data.batch_size": 1, "data.accumulate": 1, "objectives": [{"name": "dm"}],
        "fake_teacher.target": "x0", "fake_teacher.updates": 1, "student.every": 1,
        "train.steps": 3, "checkpoint.every": 1, "checkpoint.keep_last": 2,
        "checkpoint.keep_best": 0,
    }  # fmt: skip
    recipe = Recipe.from_values(dict(recipe_of(pipeline_folder)), quick | settings)
    planned = dry_run(recipe, walk=False)
    folders = sorted((distill(recipe, tmp_path / "run") / "checkpoints").iterdir())
    assert len(folders) == planned.checkpoints == 2
    for folder in folders:
        written = {file.stem: content(file) for file in folder.glob("*.safetensors")}
        assert written == planned.checkpoint


def content(file):
    """Bytes of the tensors in a file; all else of it must be its header."""
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with safe_open(file, "pt") as tensors:
        held = sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    assert file.stat().st_size == header + held
    return held


def test_plan_and_dry_run_say_how_much_disk_in_80_columns(configs, recipe_of, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(recipe_of(configs).to_yaml())
    for command in (["plan", "--gpu", "h100-80"], ["distill", "--dry-run"]):
        assert cli.run([command[0], str(tmp_path / "mine.yaml"), *command[1:]]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("checkpoint" in line for line in lines)
        # A title names the user's own folder.
        assert max(len(line) for line in lines if str(configs) not in line) <= 80
