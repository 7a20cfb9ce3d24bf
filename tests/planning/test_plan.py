"""What `plan` predicts is what happens: bytes on this processor, arithmetic, settings that help."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from fewstep import cli
from fewstep.config import Recipe
from fewstep.planning import plan
from fewstep.planning.estimate import Estimate, micro_batch
from fewstep.planning.gpus import GPUS, Gpu
from fewstep.planning.memory import memory_items, peak
from fewstep.planning.memory_tracker import MemoryTracker
from fewstep.train.trainer import Trainer
from fewstep.utils.errors import FewstepError

NEVER = 10**6


@pytest.fixture(scope="module")
def training(recipe_of):
    """A recipe that does nothing but iterate."""

    def make(folder, **sections):
        data = {
            "data": {"prompts": recipe_of(folder).data.prompts, "batch_size": 2,
                "encode_ahead": True},
            "resolution": {"height": 256, "width": 256},
            "fake_teacher": {},
            "train": {"steps": 6, "warmup": 0, "device": "cpu"},
            "checkpoint": {"every": NEVER},
            "preview": {"every": NEVER, "count": 1, "teacher": {"steps": 1}},
            "health": {"every": NEVER, "count": 1},
        }  # fmt: skip
        return recipe_of(folder, **data | sections)

    return make


def measured(recipe, folder):
    """Most bytes of tensors that are alive in some of a run's iterations."""
    with Trainer(recipe, folder, console=Console(file=io.StringIO())) as trainer:
        trainer.step()  # draws a preview, too
        trainer.step()
        run = trainer.state
        state = run.train_state
        roles = ("student", "fake_teacher", "teacher")
        modules = [*map(state.roles.net, roles), run.backbone.pipe.vae]
        with MemoryTracker() as tracker:
            for module in {id(module): module for module in modules}.values():
                tracker.watch([*module.parameters(), *module.buffers()])
            for optimizer in state.optimizers.values():
                tracker.watch(optimizer.tensors().values())
            if state.ema is not None:
                tracker.watch(state.ema.weights.values())
            trainer.step()
            trainer.step()
    return tracker.peak


def assert_predicted(recipe, folder):
    predicted = plan(recipe, "h100-80", cuda=False).peak_bytes
    assert predicted == pytest.approx(measured(recipe, folder), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_that_of_a_run(size, mode, checkpointed, dtype, folders, training, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": checkpointed}
    recipe = training(folders[size], student=student)
    recipe = Recipe.from_values(dict(recipe), {"model.dtype": dtype})
    assert_predicted(recipe, tmp_path / "run")


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
def test_peak_memory_follows_what_a_recipe_says(mode, settings, folders, training, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": True}
    recipe = Recipe.from_values(dict(training(folders["small"], student=student)), settings)
    assert_predicted(recipe, tmp_path / "run")


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
def test_peak_memory_is_that_of_a_run_in_fewer_bits(mode, settings, folders, training, tmp_path):
    student = {"mode": mode, "gradient_checkpointing": True}
    recipe = training(folders["large"], student=student)
    recipe = Recipe.from_values(dict(recipe), {"model.dtype": "bfloat16", **settings})
    assert_predicted(recipe, tmp_path / "run")


def test_as_many_samples_at_a_time_on_any_number_of_devices(recipe_of):
    data = {"prompts": "x.txt", "batch_size": 128}
    for accumulate, samples in ((128, 1), (64, 2), (16, 8), (4, 16), (1, 16)):
        recipe = recipe_of("x", data=data | {"accumulate": accumulate})
        assert micro_batch(recipe, 8) == samples
        assert micro_batch(recipe, 1) == 128 // accumulate


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_is_kept_whole_never_makes_a_run_too_large(mode, configs, recipe_of):
    """Left to choose, a split run fits wherever it fits with nothing kept whole."""
    recipe = recipe_of(configs, student={"mode": mode}, parallel={"shard": "full"})
    sparing = dict.fromkeys(("parallel.keep_gathered", "parallel.reduce_once"), False)
    recipe = Recipe.from_values(dict(recipe), {"data.accumulate": 4})
    counted = Estimate.load(recipe, 2)
    least = peak(memory_items(counted.variant(sparing)))
    most = peak(memory_items(counted.variant(dict.fromkeys(sparing, True))))
    sizes = []
    for percent in range(100, 400, 10):
        room = least * percent / 100
        sizes.append(peak(memory_items(replace(counted, room=room))))
        assert sizes[-1] <= room
    assert sizes == sorted(sizes)
    assert sizes[0] == least <= most == sizes[-1]


def test_an_accelerator_that_is_not_known_is_refused(configs, recipe_of):
    with pytest.raises(FewstepError) as refused:
        plan(recipe_of(configs), "h100-88")
    assert refused.value.code == "unknown-name"
    assert all(name.endswith(f"-{gpu.memory}") for name, gpu in GPUS.items())


def test_a_batch_that_devices_cannot_share_is_refused(configs, recipe_of):
    with pytest.raises(FewstepError) as refused:
        plan(recipe_of(configs), "h100-80", gpus=3)
    assert refused.value.code == "out-of-range"


def test_settings_that_help_come_in_order_until_it_fits(configs, recipe_of, monkeypatch):
    recipe = recipe_of(configs)
    monkeypatch.setitem(GPUS, "toy", Gpu("toy", 0, 1.0))
    result = plan(recipe, "toy")
    assert not result.fits
    assert result.changes[0].settings == ("student.gradient_checkpointing=true",)
    sizes = [result.peak_bytes, *(change.bytes for change in result.changes)]
    assert sizes == sorted(sizes, reverse=True)
    lines = str(result).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(result.changes[0].settings) for line in lines)


def test_the_command_prints_the_plan_and_writes_nothing(
    configs, recipe_of, tmp_path, monkeypatch, capsys
):
    recipe = recipe_of(configs)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir(tmp_path)
    command = ["plan", "mine.yaml", "--gpu", "h100-80", "--gpus", "2", "--json"]
    assert cli.run([*command, "--price", "2", "--utilisation", "0.5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fits"] and content["changes"] == [] and not content["measured"]
    assert content["cost"] == pytest.approx(content["hours"] * 2 * 2)
    passes = content["evaluations"]["total"] + 2 * content["evaluations"]["backward"]
    per_sample = passes * content["forward_flops"]
    assert content["iteration_flops"] == pytest.approx(per_sample * recipe.data.batch_size)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
