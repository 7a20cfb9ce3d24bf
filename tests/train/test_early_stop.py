"""A run that no longer gets better ends by itself, keeps its best, and goes on only if told to."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fewstep.cli import run as command
from fewstep.train import distill
from fewstep.train.checkpoint import store
from fewstep.train.monitor.sinks.metrics_file import METRICS, last_step
from fewstep.utils.errors import FewstepError
from plugin import make_plugin

FEW = (
    "preview.every=1",
    "preview.count=1",
    "preview.teacher.steps=1",
    "checkpoint.every=4",
    "checkpoint.keep_last=1",
)
SCORES = """
calls = []

def falling(images, prompts, teacher_images):
    calls.append(0)
    return -len(calls)

def rising(images, prompts, teacher_images):
    return -falling(images, prompts, teacher_images)
"""


@pytest.fixture
def scores(monkeypatch, tmp_path):
    """Preview scores that fall or rise from each preview to the next; the list of their calls."""
    ends = {name: f"moving_scores:{name}" for name in ("falling", "rising")}
    ends = {"fewstep.preview_scores": ends}
    plugin = make_plugin(tmp_path / "plugin", ends, {"moving_scores.py": SCORES})
    monkeypatch.syspath_prepend(plugin)
    import moving_scores

    yield moving_scores.calls
    moving_scores.calls.clear()


def train(recipe, folder, **settings) -> str:
    console = Console(file=io.StringIO(), width=300)
    distill(recipe, folder, console=console, **settings)
    return console.file.getvalue()


def test_it_ends_after_so_many_previews_and_resuming_changes_nothing_but_by_a_setting(
    scores, make_recipe, tmp_path, same_end, capsys
):
    folder, few = tmp_path / "run", (*FEW, "preview.score=falling")
    patient = make_recipe(*few, "train.early_stop=2")
    told = train(patient, folder)
    assert [line for line in told.splitlines() if "train.early_stop" in line]
    kept = [store.step_of(path) for path in store.listed(folder / "checkpoints")]
    assert kept == [1, 3], "the best, and the last"

    assert command(["distill", str(folder), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": str(folder), "step": 3, "finished": True,
    }  # fmt: skip
    assert last_step(folder / METRICS) == 3

    without = make_recipe(*few, "train.early_stop=null")
    train(without, folder, resume=True)
    scores.clear()
    train(without, tmp_path / "whole")
    same_end(tmp_path / "whole", folder, 6)


def test_a_run_that_gets_better_goes_on(scores, make_recipe, tmp_path):
    few = (*FEW, "preview.score=rising", "train.steps=3", "train.early_stop=1")
    train(make_recipe(*few), tmp_path / "run")
    assert last_step(tmp_path / "run" / METRICS) == 3


def test_without_a_best_checkpoint_there_is_nothing_to_end_for(make_recipe):
    with pytest.raises(FewstepError) as refused:
        make_recipe("train.early_stop=2", "checkpoint.keep_best=0")
    assert refused.value.code == "config"
