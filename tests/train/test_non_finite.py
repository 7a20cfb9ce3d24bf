"""Values that are not finite stop a run at once, and are called by the name of where they arose."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from fewstep.core.types import Conditioning
from fewstep.train import NonFiniteError
from fewstep.train.diagnosis import is_finite
from fewstep.train.distributed import SINGLE
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER
from fewstep.train.state import build, check
from fewstep.train.trainer import Trainer, advance
from fewstep.train.watch import look, refuse_unsound_teacher
from plugin import make_plugin
from refusals import names_in, refuses


def quiet() -> Console:
    return Console(file=io.StringIO(), width=400)


def weight_of(run, role, name="proj_out.weight"):
    return dict(run.train_state.roles.net(role).named_parameters())[name]


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("weight", [float("nan"), 1e38])
def test_a_teacher_is_tried_before_anything_is_written(make_run, mode, weight):
    """Damaged weights, or finite ones whose predictions are not."""
    run = make_run(f"student.mode={mode}")
    refuse_unsound_teacher(run)
    run = make_run(f"student.mode={mode}")
    with torch.no_grad():
        run.backbone.net.get_parameter("proj_out.weight").fill_(weight)
    with refuses("non-finite", kind=NonFiniteError) as caught:
        refuse_unsound_teacher(run)
    assert TEACHER in names_in(caught.value)
    assert not {STUDENT, FAKE_TEACHER} & names_in(caught.value)
    assert not run.folder.exists()


class Encoder:
    """An encoder of which one prompt's embedding is not finite."""

    def __init__(self, real, bad: str) -> None:
        self._real, self._bad = real, bad

    def encode(self, prompts) -> Conditioning:
        cond = self._real.encode(prompts)
        rows = [i for i, prompt in enumerate(prompts) if prompt == self._bad]
        tensors = {name: tensor.clone() for name, tensor in cond.tensors.items()}
        next(iter(tensors.values()))[rows] = torch.nan
        return Conditioning(tensors)

    def null(self, batch: int) -> Conditioning:
        return self._real.null(batch) if self._bad else self.encode([""] * batch)

    def prefetch(self, texts: list[list[str]]) -> None:
        """Nothing is read ahead."""


@pytest.mark.parametrize("bad", ["a blue square", ""])
def test_an_embedding_is_named_by_its_prompt(make_run, bad):
    """The empty prompt only gives directions, which the loss would count as none."""
    run = make_run("student.every=1", "data.batch_size=5")
    run.encoder = Encoder(run.encoder, bad)
    before = {k: v.clone() for k, v in run.train_state.roles.parameters(STUDENT).items()}
    with refuses("non-finite", "step 1: ", NonFiniteError) as caught:
        advance(run)
    assert set((bad or "empty").split()) <= names_in(caught.value)
    now = run.train_state.roles.parameters(STUDENT)
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_a_student_that_blew_up_is_named(make_recipe, tmp_path):
    trainer = Trainer(make_recipe("checkpoint.every=1"), tmp_path / "run", console=quiet())
    with refuses("non-finite", "step 2: ", NonFiniteError) as caught, trainer:
        trainer.step()
        with torch.no_grad():
            weight_of(trainer.state, STUDENT).fill_(torch.inf)
        trainer.step()
    assert {STUDENT, "step-00000001"} <= names_in(caught.value)
    assert TEACHER not in names_in(caught.value)


def test_weights_that_are_not_finite_are_not_saved(make_recipe, tmp_path):
    trainer = Trainer(make_recipe("checkpoint.every=100"), tmp_path / "run", console=quiet())
    with refuses("non-finite", "step 1: ", NonFiniteError) as caught, trainer:
        trainer.step()
        with torch.no_grad():
            weight_of(trainer.state, FAKE_TEACHER).fill_(torch.nan)
        trainer.save()
    assert FAKE_TEACHER in names_in(caught.value)
    assert not list((tmp_path / "run").rglob("*.safetensors"))[1:]  # the teacher's preview only


def test_pictures_that_are_not_finite_are_told_and_do_not_stop(make_recipe, tmp_path):
    recipe, console = make_recipe(), quiet()
    run = build(recipe, tmp_path / "run", check(recipe), console)
    with torch.no_grad():
        next(run.backbone.pipe.vae.decoder.parameters()).fill_(torch.nan)
    assert not {name for name in look(run) if name.startswith("preview")}
    assert "VAE" in console.file.getvalue()
    assert not list(run.folder.rglob("*.png")) and not list(run.folder.rglob("teacher-*"))


def test_a_score_that_fails_does_not_stop(make_recipe, monkeypatch, tmp_path):
    source = "def broken(images, prompts, teacher_images):\n    return 1 / 0\n"
    ends = {"fewstep.preview_scores": {"broken": "my_broken_scores:broken"}}
    monkeypatch.syspath_prepend(make_plugin(tmp_path, ends, {"my_broken_scores.py": source}))
    recipe, console = make_recipe("preview.score=broken"), quiet()
    run = build(recipe, tmp_path / "run", check(recipe), console)
    assert "preview/score" not in look(run)
    assert "broken" in console.file.getvalue() and list(run.folder.rglob("*.png"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_is_judged_by_numbers_not_by_their_sums(dtype):
    most = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite([most, torch.ones(2, dtype=torch.int8), torch.empty(0, dtype=dtype)])
    most[500] = torch.nan
    assert not is_finite([torch.ones(3), most])
    most[500] = -torch.inf
    assert not is_finite([most])


def test_one_process_tells_itself():
    assert SINGLE.exchange("a") == ["a"]
