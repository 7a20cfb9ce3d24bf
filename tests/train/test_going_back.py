"""A run goes back to any checkpoint it keeps, and goes on where a checkpoint cannot be written."""

from __future__ import annotations

import io
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.train.trainer import Trainer
from fewstep.utils.disk import WriteFailed
from refusals import names_in, refuses

STEPS = 6
KEEP = ("checkpoint.keep_last=9", "checkpoint.keep_best=0", f"train.steps={STEPS}")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=400)


@pytest.fixture(scope="module")
def finished(make_recipe, tmp_path_factory) -> Path:
    """A run of six steps that keeps all its checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return distill(make_recipe(*KEEP), folder, console=quiet())


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("step", [2, 4, 6])
def test_from_any_step_it_is_the_run_it_was(step, folder, finished, make_recipe, same_end):
    before = files(folder)
    distill(make_recipe(*KEEP), folder, resume_from=step, console=quiet())
    same_end(finished, folder, STEPS)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == list(range(STEPS + 1))
    aside = list(folder.glob("aside-*"))
    assert len(aside) == (step < STEPS)
    for kept in aside:
        assert [p.name for p in store.listed(kept)] == [
            f"step-{n:08d}" for n in range(step + 2, STEPS + 1, 2)
        ]
        assert (kept / "metrics.jsonl").read_bytes() == before[Path("metrics.jsonl")]
        assert (kept / f"step-{STEPS:08d}.png").is_file()
        for path in store.listed(kept):
            for name, content in files(path).items():
                assert content == before[Path("checkpoints") / path.name / name]


def test_another_way_may_be_taken_from_there(folder, make_recipe):
    other = make_recipe(*KEEP, "student.optimizer.lr=1e-4", "objectives.0.alpha=2")
    with refuses("mismatch"):
        distill(other, folder, resume=True, console=quiet())
    for _ in range(2):
        distill(other, folder, resume_from=4, console=quiet())
    assert len(list(folder.glob("aside-*"))) == 2
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lr/student"] == 1e-4
    distill(other, folder, resume=True, console=quiet())


@pytest.mark.parametrize(
    "change", ["student.every=1", "data.batch_size=2", "objectives=[{name: dm}]", "train.seed=4"]
)
def test_but_not_another_run(change, folder, make_recipe):
    before = files(folder)
    with refuses("mismatch", change.partition("=")[0]):
        distill(make_recipe(*KEEP, change), folder, resume_from=4, console=quiet())
    assert files(folder) == before


@pytest.mark.parametrize("step", [0, 3, 100])
def test_a_step_that_is_not_kept_is_refused(step, folder, make_recipe):
    before = files(folder)
    with refuses("missing-file", folder) as caught:
        distill(make_recipe(*KEEP), folder, resume_from=step, console=quiet())
    assert {"2", "4", "6"} <= names_in(caught.value)
    assert files(folder) == before


# -------------------------------------------------------------------------------- disks that refuse


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Context in which the system refuses larger files, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("beside", ["true", "false"])
def test_a_checkpoint_that_is_refused_is_tried_again(
    beside, finished, make_recipe, tmp_path, same_end
):
    folder, console = tmp_path / "run", quiet()
    recipe = make_recipe(*KEEP, f"checkpoint.asynchronous={beside}")
    with Trainer(recipe, folder, console=console) as trainer:
        trainer.step()
        with largest_file(2**16):
            trainer.step()
            trainer.state.saving.wait()
        assert not store.listed(folder / "checkpoints")
        for _ in trainer:
            pass
    there = [store.step_of(path) for path in store.listed(folder / "checkpoints")]
    assert there == [3, 4, 6] and "step 2 not written" in console.file.getvalue()
    again = make_recipe(*KEEP)
    distill(again, folder, resume_from=4, console=quiet())
    same_end(finished, folder, STEPS)


def test_if_the_last_one_is_refused_the_run_fails_and_says_what_there_is(make_recipe, tmp_path):
    folder = tmp_path / "run"
    trainer = Trainer(make_recipe(*KEEP, "train.steps=4"), folder, console=quiet())
    with refuses("no-access", folder, WriteFailed) as caught, largest_file(2**30), trainer:
        for step, _ in trainer:
            if step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
    assert "step-00000002" in names_in(caught.value)
    assert [p.name for p in store.listed(folder / "checkpoints")] == ["step-00000002"]
    distill(make_recipe(*KEEP, "train.steps=4"), folder, resume=True, console=quiet())
