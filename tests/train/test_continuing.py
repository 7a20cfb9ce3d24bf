"""A finished run goes on with more steps, optimizers and running mean; warm starts and LoRAs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from fewstep.inference.load import open_model
from fewstep.inference.runs import RunFolder
from fewstep.train import distill
from fewstep.train.checkpoint import store
from refusals import refuses

QUICK = ("preview.count=1", "health.count=1", "preview.every=9", "health.every=9")
NO_CA = "objectives=[{name: dm}, {name: cdm}]"


def quiet() -> Console:
    return Console(file=io.StringIO(), width=400)


def students(folder: Path) -> dict[str, torch.Tensor]:
    return store.student_weights(store.find(folder, "last"), raw=True)


def test_a_finished_run_with_more_steps_is_the_longer_run(make_recipe, tmp_path):
    short, long = (make_recipe(*QUICK, f"train.steps={steps}") for steps in (2, 4))
    distill(long, tmp_path / "long", console=quiet())
    distill(short, tmp_path / "short", console=quiet())
    distill(long, tmp_path / "short", resume=True, console=quiet())
    for name in ("student", "ema", "optimizers"):
        one, other = (
            load_file(store.find(tmp_path / each, "last") / f"{name}.safetensors")
            for each in ("long", "short")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def style(model, tmp_path_factory):
    """A LoRA of one layer."""
    weights = load_file(next((model / "transformer").glob("*.safetensors")))
    name = "transformer_blocks.0.attn.to_q"
    out, into = weights[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(5)
    down, up = (torch.randn(x, generator=generator) for x in ((2, into), (out, 2)))
    tensors = {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    file = tmp_path_factory.mktemp("loras") / "style.safetensors"
    save_file(tensors, file)
    return file, f"{name}.weight", up @ down


def test_a_run_keeps_to_its_loras(make_recipe, tmp_path, style):
    file, layer, change = style
    copy = tmp_path / "style.safetensors"
    shutil.copy(file, copy)
    recipe = make_recipe(*QUICK, "train.steps=2", f"model.loras=[{{path: {copy}, scale: 0.5}}]")
    run = distill(recipe, tmp_path / "run", console=quiet())
    plain = make_recipe(*QUICK, "train.steps=2")
    base = open_model(plain.model.path).net.get_parameter(layer)
    teacher = RunFolder.open(run).load_backbone().net.get_parameter(layer)
    torch.testing.assert_close(teacher, base + 0.5 * change)
    far = (students(run)[layer] - teacher).norm() / (0.5 * change).norm()
    assert far < 0.2  # it started there
    assert open_model(run).net.get_parameter(layer).isfinite().all()
    for other in (plain, make_recipe(*QUICK, "train.steps=2", f"model.loras=[{{path: {copy}}}]")):
        with refuses("mismatch"):
            distill(other, run, resume=True, console=quiet())
    moved = copy.rename(tmp_path / "elsewhere.safetensors")  # where it is decides nothing
    again = make_recipe(*QUICK, "train.steps=2", f"model.loras=[{{path: {moved}, scale: 0.5}}]")
    distill(again, run, resume=True, console=quiet())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_distilled_model_is_distilled_to_fewer_steps_without_guidance(
    mode, make_recipe, model, style, tmp_path
):
    """Both documented ways: from a turbo LoRA of the teacher, and with it in the teacher."""
    turbo = shutil.copy(style[0], tmp_path / "turbo-8-steps.safetensors")
    more = (*QUICK, NO_CA, "train.steps=2", f"student.mode={mode}")
    start = make_recipe(*more, f"student.init={turbo}")
    distill(start, tmp_path / "start", console=quiet())
    with refuses("distilled-teacher", turbo):
        distill(make_recipe(*more, f"model.loras=[{{path: {turbo}}}]"), tmp_path / "no")
    teacher = make_recipe(*more, f"model.loras=[{{path: {turbo}}}]", "model.force=true")
    distill(teacher, tmp_path / "teacher", console=quiet())
