"""What a run shows of itself: previews, health, metrics, and how it hears signals."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

from fewstep.train import distill
from fewstep.train.monitor.logger import Logger, summary
from fewstep.train.monitor.preview_scores import drift, preview_score
from fewstep.train.roles import STUDENT
from fewstep.train.signals import Interrupts
from fewstep.train.trainer import look
from fewstep.utils.errors import FewstepError
from plugin import make_plugin

# --------------------------------------------------------------------------------------- previews


def test_the_teacher_is_drawn_once(make_run):
    run = make_run("preview.steps=[4, 1]", "preview.teacher.guidance=3")
    roles, folder = run.train_state.roles, run.folder / "previews"
    first = run.preview.draw(0, roles, run.encoder)
    assert first.sheet.size == (3 * 66, 2 * 66)  # teacher and two columns of the student
    with_teacher = roles.evaluations
    assert with_teacher == 2 * (2 * 2 + 4 + 1)  # prompts x (guided steps + student's steps)
    again = run.preview.draw(3, roles, run.encoder)
    assert roles.evaluations - with_teacher == 2 * (4 + 1)
    assert first == again
    written = Image.open(folder / "step-00000003.png")
    assert written.tobytes() == again.sheet.tobytes()
    assert json.loads((folder / "previews.json").read_text())["columns"] == [
        "teacher, 2 steps, guidance 3", "student, 4 steps", "student, 1 steps",
    ]  # fmt: skip

    other = make_run("preview.steps=[4, 1]", "preview.teacher.guidance=3")
    other.preview.draw(3, other.train_state.roles, other.encoder)
    assert other.train_state.roles.evaluations == 2 * (4 + 1), "a resumed run reads the file"


def test_the_running_mean_is_what_is_shown(make_run):
    run = make_run("preview.every=1", "health.every=1")
    start = look(run)["preview/score"]
    with torch.no_grad():
        for parameter in run.train_state.roles.parameters(STUDENT).values():
            parameter += 0.05
    now = look(run)
    assert now["preview/score"] == start
    assert now["health/std_ratio"] != 1.0
    run.train_state.ema.update()
    assert look(run)["preview/score"] != start


def test_scores_of_installed_packages_are_named_in_the_recipe(make_run, monkeypatch, tmp_path):
    source = "def brightness(images, prompts, teacher_images):\n    return float(images.mean())\n"
    ends = {"fewstep.preview_scores": {"brightness": "my_preview_scores:brightness"}}
    monkeypatch.syspath_prepend(make_plugin(tmp_path, ends, {"my_preview_scores.py": source}))
    run = make_run("preview.score=brightness")
    assert 0 < run.preview.draw(0, run.train_state.roles, run.encoder).score < 1


@pytest.mark.parametrize(
    ("name", "code"), [("drfit", "unknown-name"), ("my_preview_scores:brightness", "config")]
)
def test_scores_that_are_not_there_and_code_to_import_are_refused(name, code):
    with pytest.raises(FewstepError) as refused:
        preview_score(name)
    assert refused.value.code == code


def test_drift_is_worst_far_from_the_teacher():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert drift(images, [], images) == 0
    assert drift(0.9 * images, [], images) > drift(0.5 * images, [], images)
    assert drift(images * torch.tensor([1.0, 1.0, 0.6])[:, None, None], [], images) < 0


# ----------------------------------------------------------------------------------------- health


def test_health_starts_at_nothing_wrong_and_sees_drift(make_run):
    run = make_run()
    start = run.health.measure(run.train_state.roles)
    assert start["health/mean_drift"] == 0 and start["health/std_ratio"] == 1
    assert start["health/fake_teacher_loss@0.5"] == start["health/teacher_loss@0.5"]
    again = run.health.measure(run.train_state.roles)
    assert all(torch.equal(start[name], again[name]) for name in start)
    with torch.no_grad():
        run.train_state.roles.parameters(STUDENT)["proj_out.bias"].add_(0.5)
    drifted = run.health.measure(run.train_state.roles)
    assert drifted["health/mean_drift"].abs() > 0.1


# -------------------------------------------------------------------------------------------- log


def test_a_line_holds_the_latest_of_each(make_recipe, tmp_path):
    recipe = make_recipe("log.every=3", "train.steps=7")
    log = Logger(tmp_path, recipe, console=Console(file=io.StringIO()))
    with log.opened(0):
        for step in range(1, 8):
            log.record(step, {"a": float(step)} | ({"b": 10.0 * step} if step % 2 == 0 else {}))
            if step == 5:
                assert log.pending == {"a": 5.0, "b": 40.0}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 3, "a": 3.0, "b": 20.0}, {"step": 6, "a": 6.0, "b": 60.0}, {"step": 7, "a": 7.0},
    ]  # fmt: skip


def test_progress_is_plain_where_there_is_no_terminal(make_recipe, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    distill(make_recipe("train.steps=2"), tmp_path / "run", console=console)
    said = console.file.getvalue()
    assert "5 prompts; step 0 of 2" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("step 2/2") and "ca " in last and "images/s" in last


def test_the_summary_names_losses_first():
    text = summary({"loss/dm": 0.5, "memory_gb": 1.25, "evaluations": 12345, "k/dm": 3.0})
    assert text == "dm 0.5  12,345 evaluations  1.2 GB"


# ---------------------------------------------------------------------------------------- signals


def test_the_second_signal_is_at_once():
    """In a child, which reads its own exit from the system."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    child = multiprocessing.get_context("fork").Process(target=_two_signals)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGTERM


def _two_signals() -> None:
    heard = []
    with Interrupts(heard.append) as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested and len(heard) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(3)
