"""Stopping and resuming, in any way, is bitwise equal to never having stopped."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fewstep.config import Recipe
from fewstep.train import NonFiniteError, Stopped, distill, step, trainer
from fewstep.train.checkpoint import store
from refusals import names_in, refuses

STEPS = 6


class Crash(BaseException):
    """What ends a run here; nothing catches it, as nothing catches SIGKILL."""


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def crash_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """End the run within the iteration that follows a step."""
    real = trainer.iteration

    def iteration(train_state, parts, draws, algorithm):
        measured = real(train_state, parts, draws, algorithm)
        if draws.step == step:
            raise Crash
        return measured

    monkeypatch.setattr(trainer, "iteration", iteration)


@pytest.fixture(scope="session")
def finished(make_recipe, tmp_path_factory) -> Callable[[str], Path]:
    """Run folder of six steps in one go, per mode; made once."""
    folders: dict[str, Path] = {}

    def get(mode: str) -> Path:
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp("finished") / mode
            distill(recipe_of(make_recipe, mode), folders[mode], console=quiet())
        return folders[mode]

    return get


def recipe_of(make_recipe: Callable[..., Recipe], mode: str) -> Recipe:
    rank = ["student.lora.rank=4", "student.gradient_checkpointing=true"] if mode == "lora" else []
    return make_recipe(f"student.mode={mode}", *rank)


@pytest.fixture
def copy_of(finished, tmp_path) -> Callable[[int], Path]:
    """Copy of the finished full run as it was after some step, its newest checkpoint included."""

    def make(step: int) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(finished("full"), folder)
        for path in store.listed(folder / "checkpoints"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        return folder

    return make


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_six_steps_are_three_and_three(
    mode, finished, make_recipe, tmp_path, monkeypatch, same_end
):
    recipe, folder = recipe_of(make_recipe, mode), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 3)  # in the 4th iteration: step 3 is in metrics.jsonl, step 2 is saved
        distill(recipe, folder, console=quiet())
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    console = quiet()
    assert distill(recipe, folder, resume=True, console=console) == folder
    assert "resuming from step-0000000" in console.file.getvalue()
    same_end(finished(mode), folder, STEPS)


def test_previews_do_not_depend_on_interruptions(finished, make_recipe, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 4)
        distill(recipe_of(make_recipe, "full"), folder, console=quiet())
    distill(recipe_of(make_recipe, "full"), folder, resume=True, console=quiet())
    for picture in sorted((finished("full") / "previews").glob("*.png")):
        assert picture.read_bytes() == (folder / "previews" / picture.name).read_bytes()


def children(monkeypatch: pytest.MonkeyPatch):
    """Context for processes forked from a server that has never run autograd."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # one thread, as in this process: equal rounding
    context = multiprocessing.get_context("forkserver")
    pipelines = "diffusers.pipelines.stable_diffusion_3"  # imported once, not by each child
    context.set_forkserver_preload(["fewstep.train", f"{pipelines}.pipeline_stable_diffusion_3"])
    return context


def run_until(process, metrics: Path, step: int) -> None:
    process.start()
    deadline = time.monotonic() + 600  # a busy machine is slow, not wrong
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert process.is_alive(), "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_process_and_a_stopped_one(finished, make_recipe, tmp_path, monkeypatch, same_end):
    recipe, context = recipe_of(make_recipe, "full"), children(monkeypatch)
    folder = tmp_path / "run"

    process = context.Process(target=distill, args=(recipe, folder))
    run_until(process, folder / "metrics.jsonl", 2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL

    process = context.Process(target=distill, args=(recipe, folder), kwargs={"resume": True})
    run_until(process, folder / "metrics.jsonl", 3)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    newest = store.listed(folder / "checkpoints")[-1]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert store.read_state(newest)["step"] == json.loads(lines[-1])["step"] < STEPS

    distill(recipe, folder, resume=True, console=quiet())
    same_end(finished("full"), folder, STEPS)


def test_a_signal_finishes_the_step_and_saves(make_recipe, tmp_path, monkeypatch):
    real = trainer.iteration

    def iteration(train_state, parts, draws, algorithm):
        if draws.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(train_state, parts, draws, algorithm)

    monkeypatch.setattr(trainer, "iteration", iteration)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        distill(make_recipe(), tmp_path / "run", console=quiet())
    assert (stopped.value.code, stopped.value.step) == (0, 3)
    assert store.listed(tmp_path / "run" / "checkpoints")[-1].name == "step-00000003"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_non_finite_gradient_leaves_the_last_checkpoint(
    make_recipe, finished, tmp_path, monkeypatch, same_end
):
    recipe, folder, real = recipe_of(make_recipe, "full"), tmp_path / "run", step.evaluate

    def poisoned(objectives, networks, batch, **settings):
        terms = real(objectives, networks, batch, **settings)
        wrong = float("inf") if batch.draws.step == 5 else 1.0
        return [replace(term, loss=term.loss * wrong) for term in terms]

    with monkeypatch.context() as patch, refuses("non-finite", "step 6: ") as caught:
        patch.setattr(step, "evaluate", poisoned)
        distill(recipe, folder, console=quiet())
    assert isinstance(caught.value, NonFiniteError)
    assert {"ca", "dm", "cdm", "step-00000004"} <= names_in(caught.value)
    distill(recipe, folder, resume=True, console=quiet())
    same_end(finished("full"), folder, STEPS)


@pytest.mark.parametrize("file", ["student.safetensors", "optimizers.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_found(file, damage, copy_of):
    newest = store.listed(copy_of(STEPS) / "checkpoints")[-1]
    content = bytearray((newest / file).read_bytes())
    if damage == "remove":
        (newest / file).unlink()
    elif damage == "cut":
        (newest / file).write_bytes(content[: len(content) // 2])
    else:
        content[-20] ^= 1
        (newest / file).write_bytes(content)
    with refuses("damaged", f"{newest.name}: {file}", store.BrokenCheckpointError):
        store.load(newest)
    found, broken = store.newest(newest.parent)
    assert found is not None and found.state["step"] < STEPS
    assert [*broken] == [newest]


def test_resume_falls_back_to_the_checkpoint_before(finished, copy_of, make_recipe, same_end):
    folder = copy_of(STEPS)
    newest = store.listed(folder / "checkpoints")[-1]
    os.truncate(newest / "student.safetensors", 1000)
    console = quiet()
    distill(recipe_of(make_recipe, "full"), folder, resume=True, console=console)
    assert "step-00000006: student.safetensors is missing or damaged" in console.file.getvalue()
    assert "set aside as broken-step-00000006" in console.file.getvalue()
    same_end(finished("full"), folder, STEPS)


def test_never_silently_back_to_step_0(copy_of, make_recipe):
    recipe, folder = recipe_of(make_recipe, "full"), copy_of(STEPS)
    for path in store.listed(folder / "checkpoints"):
        (path / "state.json").write_text("{}")
    for _ in range(2):
        with refuses("missing-file", folder):
            distill(recipe, folder, resume=True, console=quiet())
    shutil.rmtree(folder / "checkpoints")
    with refuses("missing-file", folder) as caught:
        distill(recipe, folder, resume=True, console=quiet())
    assert str(STEPS) in names_in(caught.value)


def test_a_save_that_is_cut_off_leaves_the_one_before(copy_of, monkeypatch, tmp_path):
    folder = copy_of(4) / "checkpoints"
    before = store.load(folder / "step-00000004")

    def crash(*args, **kwargs):
        raise Crash

    for name in ("save_file", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(store, name, crash)
            store.save(folder, 5, before.groups, {})
        assert store.listed(folder)[-1].name == "step-00000004"
    store.save(folder, 5, before.groups, {})
    assert store.listed(folder)[-1].name == "step-00000005"
    assert not list(folder.glob(".unfinished-*"))


def test_a_run_is_not_overwritten(copy_of, make_recipe):
    folder = copy_of(4)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with refuses("exists", folder):
        distill(recipe_of(make_recipe, "full"), folder, console=quiet())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_finished_run_resumes_to_itself(finished, copy_of, make_recipe, same_end):
    folder = copy_of(STEPS)
    distill(recipe_of(make_recipe, "full"), folder, resume=True, console=quiet())
    same_end(finished("full"), folder, STEPS)


def test_a_value_may_have_been_spelled_otherwise(finished, copy_of, make_recipe, same_end):
    folder = copy_of(4)
    saved = store.load(store.listed(folder / "checkpoints")[-1])
    state = {key: value for key, value in saved.state.items() if key != "sha256"}
    assert state["recipe"]["fake_teacher"]["target"] == {"x0": 1.0}
    state["recipe"]["fake_teacher"]["target"] = "x0"
    store.save(folder / "checkpoints", 4, saved.groups, state)
    distill(recipe_of(make_recipe, "full"), folder, resume=True, console=quiet())
    same_end(finished("full"), folder, STEPS)
    state["recipe"]["fake_teacher"]["aim"] = "x0"
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    store.save(folder / "checkpoints", 5, saved.groups, state | {"step": 5})
    with refuses("config", "fake_teacher.aim: "):
        distill(recipe_of(make_recipe, "full"), folder, resume=True, console=quiet())


def test_resume_with_another_recipe_is_refused(copy_of, make_recipe, tmp_path):
    folder = copy_of(4)
    with refuses("mismatch", "student.every: "):
        distill(make_recipe("student.every=1"), folder, resume=True, console=quiet())
    other = tmp_path / "other.txt"
    other.write_text("something else\n")
    recipe = make_recipe(f"data.prompts={other}")
    with refuses("mismatch"):
        distill(recipe, folder, resume=True, console=quiet())
