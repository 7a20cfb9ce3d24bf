"""What --dry-run tells is what a run then does: parameters, evaluations, files and their sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fewstep import cli, models
from fewstep.config import LoraRecipe, load_recipe, parse_recipe
from fewstep.objectives import build
from fewstep.planning import count_evaluations, count_parameters, dry_run
from fewstep.planning.files import checkpoints_kept
from fewstep.train import distill
from fewstep.train.memory.adapters import adapter_parameters, add_adapters

OBJECTIVES = [{"name": "ca"}, {"name": "dm"}, {"name": "cdm"}]


def recipe_of(folder, prompts, **sections):
    data = {
        "model": {"path": str(folder), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(prompts), "batch_size": 4, "accumulate": 2},
        "resolution": {"height": 64, "width": 64},
        "grid": {"name": "fixed", "sigmas": [1.0, 0.5]},
        "objectives": OBJECTIVES,
        "fake_teacher": {"updates": 2, "target": "final"},
        "train": {"steps": 2, "warmup": 0},
        "checkpoint": {"every": 2},
        "preview": {"every": 2, "count": 1, "steps": [1], "teacher": {"steps": 1}},
        "health": {"every": 2, "count": 1, "sigmas": [0.5]},
    }
    return parse_recipe(data | sections)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "prompts.txt"
    file.write_text("red circle\nblue square on gray\n")
    return file


@pytest.fixture(scope="module")
def configs(pipeline_folder, tmp_path_factory):
    """The pipeline's folder without any weights."""
    folder = tmp_path_factory.mktemp("configs") / "pipeline"
    shutil.copytree(pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def run(pipeline_folder, prompts, tmp_path_factory):
    recipe = recipe_of(pipeline_folder, prompts)
    return recipe, distill(recipe, tmp_path_factory.mktemp("runs") / "run")


def test_evaluations_are_those_of_the_run(run, configs, prompts):
    _, folder = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = dry_run(recipe_of(configs, prompts))
    assert found.run_evaluations == lines[-1]["evaluations"]
    assert found.evaluations.backward == 2 + 2 / 2, "two fake updates, two sites every second time"


def test_files_are_those_of_the_run(run, configs, prompts):
    _, folder = run
    found = dry_run(recipe_of(configs, prompts)).files
    told = {file.path: file for file in found}
    written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for path in written:
        matching = [file for file in told if path.match(file)]
        assert matching, f"{path} is not foretold"
    for pattern, file in told.items():
        there = [path for path in written if path.match(pattern)]
        assert len(there) == file.count, pattern
        if file.size is not None:
            size = sum((folder / path).stat().st_size for path in there)
            assert size == pytest.approx(file.size, rel=0.05), pattern


@pytest.mark.parametrize("targets", [None, ("to_q", "to_v")])
def test_adapters_are_counted_as_they_are_made(targets, pipeline_folder, configs):
    recipe = LoraRecipe(rank=4, targets=targets)
    backbone = models.load(pipeline_folder)
    student = recipe_of("x", "o/x", student={"mode": "lora", "lora": recipe.model_dump()}).student
    counted = count_parameters(models.load_meta(configs), student)
    add_adapters(backbone, backbone.net, recipe, ["student"], seed=0)
    made = adapter_parameters(backbone.net, "student")
    assert counted.trained == sum(parameter.numel() for parameter in made.values())
    assert counted.tensors == len(made)


def test_an_outline_is_the_backbone_without_weights(pipeline_folder, configs):
    outline, whole = models.load_meta(configs), models.load(pipeline_folder)
    assert outline.shift(64, 96) == whole.shift(64, 96)
    assert outline.latent_shape(64, 96) == whole.latent_shape(64, 96)
    assert outline.lora_targets(outline.net) == whole.lora_targets(whole.net)
    assert len(outline.blocks(outline.net)) == len(whole.blocks(whole.net))
    assert outline.device == torch.device("meta")


def test_average_evaluations_of_random_grids():
    def counted(**sections):
        recipe = recipe_of("x", "o/x", fake_teacher={}, **sections)
        return count_evaluations(recipe, [build(**each) for each in OBJECTIVES])

    grid = {"name": "random", "min_steps": 3, "max_steps": 7}
    found = counted(grid=grid)
    assert found.simulation == (5 + 1) / 2, "a sample leaves at its anchor"
    assert (found.student, found.teachers, found.fake_teacher) == (1.0, 3.0, 1.0)
    assert counted(grid=grid, student={"every": 1}).teachers == 6.0
    kept = counted(grid=grid, data={"prompts": "o/x", "batch_size": 4})
    assert kept.simulation == (5 + 1) / 2 - 1 / 2, "one of two answers there serves objectives too"
    plain = counted(grid=grid, train={"steps": 2, "step": "plain"})
    assert (plain.simulation, plain.student, plain.teachers) == (5.0, 1.5, 3.0)


def test_every_objective_can_be_counted():
    recipe = recipe_of("x", "o/x")
    embedded = build("ca_embedded")
    drawn = build("dm", teacher_guidance={"low": 1.0, "high": 8.0})
    found = count_evaluations(recipe, [embedded, drawn, build("isg")])
    assert (found.student, found.teachers) == (2 / 2, 5 / 2)


def test_checkpoints_kept():
    def kept(**checkpoint):
        sections = {"train": {"steps": 100}, "checkpoint": {"every": 10, **checkpoint}}
        return checkpoints_kept(recipe_of("x", "o/x", **sections))

    assert kept(keep_last=2, keep_best=1) == 3
    assert kept(keep_last=50, keep_best=0) == 10
    assert kept(every=100, keep_last=2, keep_best=0) == 1


def test_memory_follows_the_mode(configs, prompts):
    def items(**sections):
        found = dry_run(recipe_of(configs, prompts, **sections))
        return {item.name: item.size for item in found.memory}, found

    full, told = items()
    size = told.parameters.network
    assert full["teacher, frozen"] == 4 * size and full["student and fake teacher"] == 8 * size
    assert full["optimizers"] == 16 * size and full["gradients"] == 4 * size
    low, _ = items(model={"path": str(configs), "dtype": "bfloat16"})
    assert low["teacher, frozen"] == 2 * size
    adapters, told = items(student={"mode": "lora", "lora": {"rank": 2}}, ema=None)
    assert adapters["shared base, frozen"] == 4 * size
    assert adapters["optimizers"] == 16 * told.parameters.trained < full["optimizers"]
    assert "running mean (EMA)" not in adapters
    small, _ = items(student={"gradient_checkpointing": True})
    assert small["activations and casts"] < full["activations and casts"]


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def written(configs, prompts, tmp_path):
    from fewstep.config import dump_recipe

    file = tmp_path / "mine.yaml"
    file.write_text(dump_recipe(recipe_of(configs, prompts)))
    return file


def test_the_command_writes_nothing(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["distill", str(written), "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["few_step"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert content["anchors"] == pytest.approx([0.75, 0.75])
    assert content["missing"] == {}
    assert cli.run(["distill", str(written), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "optimizers" in shown and "checkpoints/step-*/ema.safetensors" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_prompts_may_be_missing_and_that_is_told(written, capsys):
    command = ["distill", str(written), "--dry-run", "--set", "data.prompts=nowhere.txt"]
    assert cli.run(command) == 0
    assert "data.prompts: there is no file nowhere.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objectives=[{name: ca_embedded}]", "objectives.0"),
        ("objectives=[{name: cdmm}]", "did you mean 'cdm'"),
        ("resolution.height=60", "multiples of"),
        ("model.options={max_length: 3}", "no option 'max_length'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(written, override, told, capsys):
    assert cli.run(["distill", str(written), "--dry-run", "--set", override]) == 2
    said = capsys.readouterr()
    assert told in said.err and said.out == "" and len(said.err.splitlines()) == 1


def test_a_missing_configuration_is_named(written, configs, tmp_path, capsys):
    shutil.copytree(configs, tmp_path / "broken")
    (tmp_path / "broken" / "transformer" / "config.json").unlink()
    command = ["distill", str(written), "--dry-run", "--set", f"model.path={tmp_path / 'broken'}"]
    assert cli.run(command) == 2
    assert "broken/transformer: no usable configuration" in capsys.readouterr().err


def test_a_distilled_teacher_needs_force(written, configs, tmp_path, capsys):
    student = tmp_path / "student"
    shutil.copytree(configs, student)
    (student / "fewstep.json").write_text('{"steps": 4, "base": "owner/teacher"}')
    command = ["distill", str(written), "--dry-run", "--set", f"model.path={student}"]
    assert cli.run(command) == 2
    assert "distil owner/teacher instead, or force it: --force" in capsys.readouterr().err
    assert cli.run([*command, "--force"]) == 0
    assert load_recipe(written, ["model.force=true"]).model.force
