"""What plan tells is what happens: bytes on this processor, arithmetic, settings that help."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from rich.console import Console

from fewstep import cli
from fewstep.config import dump_recipe, parse_recipe
from fewstep.planning.estimate import plan
from fewstep.planning.gpus import GPUS, Gpu, find_gpu
from fewstep.planning.memory_tracker import MemoryTracker
from fewstep.planning.peak import micro_batch
from fewstep.planning.variants import changed
from fewstep.toyworld.pipeline import Sizes, build
from fewstep.utils.errors import FewstepError

SMALL = Sizes(hidden=128, heads=4, layers=4, clip=16, t5=32)
LARGE = Sizes(hidden=256, heads=8, layers=6, clip=16, t5=32)


def make_recipe(folder, **sections):
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("red circle\nblue square on gray\n")
    data = {
        "model": {"path": str(folder), "options": {"max_sequence_length": 16}},
        "data": {"prompts": str(prompts), "batch_size": 2, "encode_ahead": True},
        "resolution": {"height": 256, "width": 256},
        "grid": {"name": "fixed", "sigmas": [1.0, 0.5]},
        "objectives": [{"name": "ca"}, {"name": "dm"}, {"name": "cdm"}],
        "train": {"steps": 4, "warmup": 0, "device": "cpu"},
        "preview": {"count": 1},
        "health": {"count": 1},
    }
    return parse_recipe(data | sections)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two SD3-shaped pipelines with random weights."""
    found = {}
    for name, sizes in (("small", SMALL), ("large", LARGE)):
        found[name] = tmp_path_factory.mktemp(name) / "pipeline"
        build(0, sizes).save_pretrained(found[name], safe_serialization=True)
    return found


@pytest.fixture(scope="module")
def configs(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs") / "pipeline"
    shutil.copytree(folders["small"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def measured(recipe, folder):
    """Most bytes of tensors that are alive during a run's first iterations."""
    from fewstep.core.noise import Draws
    from fewstep.train import state, trainer
    from fewstep.train.step import iteration

    made = state.build(recipe, folder, state.check(recipe), Console(file=io.StringIO()))
    train_state = made.train_state
    roles = ("student", "fake_teacher", "teacher")
    nets = {id(net): net for net in map(train_state.roles.net, roles)}
    with MemoryTracker() as live:
        for net in (*nets.values(), made.backbone.pipe.vae):
            live.watch([*net.parameters(), *net.buffers()])
        if train_state.ema is not None:
            live.watch(train_state.ema.weights.values())
        for _ in range(recipe.train.steps):
            batch = trainer._batch(made)
            draws = Draws(recipe.train.seed, made.step, torch.device("cpu"))
            iteration(train_state, batch, draws, made.algorithm)
            made.step += 1
    return live.peak


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_that_of_a_run(size, mode, checkpointed, dtype, folders, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": checkpointed}
    recipe = make_recipe(folders[size], student=student)
    assert_told_is_found(changed(recipe, {"model.dtype": dtype}), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("full", {"data.accumulate": 2}),
        ("lora", {"data.accumulate": 2}),
        ("lora", {"train.batch_teachers": False}),
        ("full", {"memory.teacher_dtype": "bfloat16"}),
        ("full", {"train.step": "plain"}),
    ],
    ids=str,
)
def test_peak_memory_follows_what_a_recipe_says(mode, settings, folders, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": True}
    recipe = make_recipe(folders["small"], student=student)
    assert_told_is_found(changed(recipe, settings), tmp_path / "run")


BITS = [f"{role}.optimizer.name" for role in ("student", "fake_teacher")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        *(("lora", {"memory.base": base}) for base in ("int8", "fp8", "nf4")),
        ("full", dict.fromkeys(BITS, "adamw8bit")),
        ("full", {"memory.trained_dtype": "bfloat16"}),
        ("full", {"ema": None}),
    ],
    ids=str,
)
def test_peak_memory_is_that_of_a_run_in_fewer_bits(mode, settings, folders, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": True}
    recipe = make_recipe(folders["large"], student=student)
    assert_told_is_found(changed(recipe, {"model.dtype": "bfloat16", **settings}), tmp_path / "run")


def assert_told_is_found(recipe, folder):
    told = plan(recipe, "h100-80", cuda=False).peak_bytes
    found = measured(recipe, folder)
    assert told == pytest.approx(found, rel=0.1)


def test_as_many_samples_at_a_time_on_any_number_of_devices(tmp_path):
    data = {"prompts": "x.txt", "batch_size": 128}
    for accumulate, samples in ((128, 1), (64, 2), (16, 8), (4, 16), (1, 16)):
        recipe = make_recipe(tmp_path / "x", data=data | {"accumulate": accumulate})
        assert micro_batch(recipe, 8) == samples
        assert micro_batch(recipe, 1) == 128 // accumulate


def test_an_accelerator_that_is_not_known_is_refused():
    with pytest.raises(FewstepError, match="did you mean 'h100-80'"):
        find_gpu("h100-88")
    assert all(name.endswith(f"-{gpu.memory}") for name, gpu in GPUS.items())


def test_settings_that_help_come_in_order_until_it_fits(configs, monkeypatch):
    recipe = make_recipe(configs)
    peak = plan(recipe, "h100-80").peak_bytes
    monkeypatch.setitem(GPUS, "toy", Gpu("toy", 0, 1.0))
    found = plan(recipe, "toy")
    assert not found.fits and found.changes[0].settings == ("student.gradient_checkpointing=true",)
    sizes = [peak, *(change.bytes for change in found.changes)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_command_needs_configurations_only_and_writes_nothing(
    configs, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "mine.yaml"
    file.write_text(dump_recipe(make_recipe(configs)))
    monkeypatch.chdir(tmp_path)
    command = ["plan", str(file), "--gpu", "h100-80", "--gpus", "2"]
    assert cli.run([*command, "--json", "--price", "2", "--utilisation", "0.5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fits"] and content["changes"] == [] and not content["measured"]
    assert content["cost"] == pytest.approx(content["hours"] * 2 * 2)
    passes = content["evaluations"]["total"] + 2 * content["evaluations"]["backward"]
    assert content["iteration_flops"] == pytest.approx(passes * 2 * content["forward_flops"])
    assert cli.run(command) == 0
    assert "assumed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert cli.run(["plan", str(file), "--gpu", "h100-80", "--gpus", "3"]) == 2
