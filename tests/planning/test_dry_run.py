"""What --dry-run predicts is what a run then does: parameters, evaluations, files, their sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fewstep import cli, models
from fewstep.config import LoraRecipe
from fewstep.planning import count_parameters, dry_run
from fewstep.planning.disk import checkpoints_kept
from fewstep.planning.estimate import Estimate
from fewstep.train import distill
from fewstep.train.memory.adapters import adapter_parameters, add_adapters
from fewstep.utils.errors import FewstepError


@pytest.fixture(scope="module")
def run(pipeline_folder, recipe_of, tmp_path_factory):
    """Folder of a run, and what was predicted."""
    recipe = recipe_of(pipeline_folder)
    return distill(recipe, tmp_path_factory.mktemp("runs") / "run"), dry_run(recipe)


def test_evaluations_are_those_of_the_run(run):
    folder, predicted = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert predicted.run_evaluations == lines[-1]["evaluations"]
    assert predicted.evaluations.backward == 2 + 2 / 2, "two fake updates, two sites every 2nd time"


def test_files_are_those_of_the_run(run):
    folder, predicted = run
    files = {file.path: file for file in predicted.files}
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for path in written:
        assert any(path.match(pattern) for pattern in files), f"{path} was not predicted"
    for pattern, file in files.items():
        matching = [path for path in written if path.match(pattern)]
        assert len(matching) == file.count, pattern
        if file.size is not None:
            size = sum((folder / path).stat().st_size for path in matching)
            assert size == pytest.approx(file.size, rel=0.05), pattern


@pytest.mark.parametrize("targets", [None, ("to_q", "to_v")])
def test_adapters_are_counted_as_they_are_made(targets, pipeline_folder, configs, recipe_of):
    lora = LoraRecipe(rank=4, targets=targets)
    backbone = models.load(pipeline_folder)
    student = recipe_of("x", student={"mode": "lora", "lora": lora.model_dump()}).student
    counted = count_parameters(models.load_meta(configs), student)
    add_adapters(backbone, backbone.net, lora, ["student"], seed=0)
    made = adapter_parameters(backbone.net, "student")
    assert counted.trained == sum(parameter.numel() for parameter in made.values())


def test_a_model_on_meta_is_the_backbone_without_weights(pipeline_folder, configs):
    meta, loaded = models.load_meta(configs), models.load(pipeline_folder)
    assert meta.shift(64, 96) == loaded.shift(64, 96)
    assert meta.latent_shape(64, 96) == loaded.latent_shape(64, 96)
    assert meta.lora_targets(meta.net) == loaded.lora_targets(loaded.net)
    assert len(meta.blocks(meta.net)) == len(loaded.blocks(loaded.net))
    assert meta.device == torch.device("meta")


GRID = {"name": "random", "min_steps": 3, "max_steps": 7}  # 5 on average, anchors at 3


@pytest.mark.parametrize(
    ("sections", "simulation", "student", "teachers"),
    [
        ({}, 3.0, 1.0, 3.0),
        ({"student": {"every": 1}}, 3.0, 2.0, 6.0),
        # One of two predictions at anchors serves the objectives too.
        ({"data": {"prompts": "x", "batch_size": 4}}, 3.0 - 1 / 2, 1.0, 3.0),
        ({"train": {"steps": 2, "step": "plain"}}, 5.0, 1.5, 3.0),
        ({"objectives": [{"name": "isg"}, {"name": "dm"}]}, 3.0, 1.0, 1.5),
    ],
    ids=["fused", "every iteration", "reused", "plain", "isg"],
)
def test_average_evaluations(sections, simulation, student, teachers, configs, recipe_of):
    recipe = recipe_of(configs, **{"fake_teacher": {}, "grid": GRID} | sections)
    counted = dry_run(recipe, walk=False).evaluations
    assert (counted.simulation, counted.student, counted.teachers) == (
        simulation,
        student,
        teachers,
    )
    assert counted.total == simulation + student + teachers + counted.fake_teacher


def test_devices_that_share_a_network_wait_for_each_other(configs, recipe_of):
    """Little where samples of close anchors are worked on together, and as training splits them."""
    grid = {"name": "fixed", "sigmas": [1 - i / 16 for i in range(16)]}
    sections = {"fake_teacher": {}, "grid": grid, "parallel": {"shard": "full"}}
    data = {"prompts": "x", "batch_size": 128, "accumulate": 16}
    recipe = recipe_of(configs, data=data, **sections)
    alone, together = (Estimate.load(recipe, gpus=n).evaluations.simulation for n in (1, 8))
    assert alone == 8.5 < together < 9.5


@pytest.mark.parametrize(
    ("checkpoint", "count"),
    [
        ({"every": 10, "keep_last": 2, "keep_best": 1}, 3),
        ({"every": 10, "keep_last": 50, "keep_best": 0}, 10),
        ({"every": 100, "keep_last": 2, "keep_best": 0}, 1),
    ],
)
def test_checkpoints_kept(checkpoint, count, recipe_of):
    assert checkpoints_kept(recipe_of("x", train={"steps": 100}, checkpoint=checkpoint)) == count


def test_memory_follows_the_mode(configs, recipe_of):
    def items(**sections):
        result = dry_run(recipe_of(configs, **sections))
        return {item.name: item.size for item in result.memory}, result

    full, result = items()
    size = result.parameters.network
    assert full["teacher, frozen"] == 4 * size and full["student and fake teacher"] == 8 * size
    assert full["optimizers"] == pytest.approx(16 * size, rel=0.01), "and each one's update count"
    assert full["gradients"] == 4 * size
    low = {"path": str(configs), "dtype": "bfloat16"}
    adapters, result = items(model=low, student={"mode": "lora", "lora": {"rank": 2}}, ema=None)
    assert adapters["shared base, frozen"] == 2 * size
    assert 16 * result.parameters.trained <= adapters["optimizers"] < full["optimizers"]
    assert "running mean (EMA)" not in adapters
    small, _ = items(student={"gradient_checkpointing": True})
    assert small["activations and casts"] < full["activations and casts"]


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"objectives": [{"name": "ca_embedded"}]}, "mismatch"),
        ({"resolution": {"height": 60, "width": 64}}, "out-of-range"),
        ({"model": {"path": "CONFIGS", "options": {"max_length": 3}}}, "unknown-name"),
    ],
)
def test_what_a_run_would_refuse_is_refused(sections, code, configs, recipe_of):
    if "model" in sections:
        sections = {"model": sections["model"] | {"path": str(configs)}}
    with pytest.raises(FewstepError) as refused:
        dry_run(recipe_of(configs, **sections), walk=False)
    assert refused.value.code == code


def test_a_missing_configuration_is_refused(configs, recipe_of, tmp_path):
    shutil.copytree(configs, tmp_path / "broken")
    (tmp_path / "broken" / "transformer" / "config.json").unlink()
    with pytest.raises(FewstepError):
        dry_run(recipe_of(tmp_path / "broken"), walk=False)


def test_a_distilled_teacher_needs_force(configs, recipe_of, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(configs, student)
    (student / "fewstep.json").write_text('{"steps": 4, "base": "owner/teacher"}')
    with pytest.raises(FewstepError) as refused:
        dry_run(recipe_of(student), walk=False)
    assert refused.value.code == "distilled-teacher"
    forced = {"path": str(student), "force": True, "options": {"max_sequence_length": 16}}
    assert dry_run(recipe_of(student, model=forced), walk=False).blocks


def test_the_command_writes_nothing(configs, recipe_of, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(recipe_of(configs).to_yaml())
    monkeypatch.chdir(tmp_path)
    command = ["distill", "mine.yaml", "--dry-run", "--set", "data.prompts=nowhere.txt"]
    assert cli.run([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["few_step"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert content["anchors"] == pytest.approx([0.75, 0.75])
    assert content["missing"].keys() == {"data.prompts"}
    assert cli.run(command) == 0
    assert "checkpoints/step-*/ema.safetensors" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
