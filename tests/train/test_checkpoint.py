"""Which checkpoints stay, and which one is meant."""

from __future__ import annotations

import pytest
import torch

from fewstep.train.checkpoint import store
from fewstep.utils.errors import FewstepError

SCORES = {1: 0.1, 2: 0.9, 3: None, 4: 0.9, 5: 0.2, 6: None}


@pytest.fixture
def run(tmp_path):
    for step, score in SCORES.items():
        groups = {"student": {"w": torch.full((2,), float(step))}}
        if step > 3:
            groups["ema"] = {"w": torch.full((2,), -float(step))}
        store.save(tmp_path / "checkpoints", step, groups, {"score": score})
    return tmp_path


def steps(run) -> list[int]:
    return [int(path.name[-8:]) for path in store.listed(run / "checkpoints")]


@pytest.mark.parametrize(
    ("last", "best", "kept"),
    [(2, 1, [4, 5, 6]), (1, 0, [6]), (1, 2, [2, 4, 6]), (9, 0, [1, 2, 3, 4, 5, 6])],
)
def test_the_newest_and_the_best_stay(run, last, best, kept):
    store.prune(run / "checkpoints", keep_last=last, keep_best=best)
    assert steps(run) == kept
    assert not list((run / "checkpoints").glob(".*"))


def test_one_can_be_asked_for(run):
    assert store.find(run, "best").name == "step-00000004"
    assert store.find(run, "last").name == "step-00000006"
    assert store.find(run, 2).name == "step-00000002"
    with pytest.raises(FewstepError) as refused:
        store.find(run, 7)
    assert refused.value.code == "missing-file"
    with pytest.raises(FewstepError) as refused:
        store.find(run, "bets")
    assert refused.value.code == "unknown-name"
    with pytest.raises(FewstepError) as refused:
        store.find(run / "nowhere", "last")
    assert refused.value.code == "missing-file"


def test_what_is_saved_comes_back(run):
    saved = store.load(store.find(run, 5))
    assert (saved.state["step"], saved.state["score"]) == (5, 0.2)
    assert torch.equal(saved.groups["student"]["w"], torch.full((2,), 5.0))


def test_steps_of_unlike_length_are_keys_like_any_others(tmp_path):
    """As text, 100 comes before 25: the sum must not depend on which way the keys were sorted."""
    scores = {25: 0.1, 75: 0.2, 100: 0.3}
    store.save(tmp_path, 100, {"student": {"w": torch.ones(1)}}, {"scores": scores})
    saved = store.load(tmp_path / "step-00000100")
    assert saved.state["scores"] == {str(step): score for step, score in scores.items()}


def test_the_student_is_its_mean_where_there_is_one(run):
    assert store.student_weights(store.find(run, 5))["w"][0] == -5
    path = store.find(run, 2)
    assert store.student_weights(path)["w"][0] == 2
    (path / "student.safetensors").write_bytes(b"")
    with pytest.raises(store.BrokenCheckpointError) as refused:
        store.student_weights(path)
    assert refused.value.code == "damaged"


def test_saving_a_step_again_replaces_it(run):
    groups = {"student": {"w": torch.zeros(1)}}
    store.save(run / "checkpoints", 6, groups, {"score": 1.0})
    assert store.load(store.find(run, 6)).state["score"] == 1.0
    assert store.find(run, "best").name == "step-00000006"


def test_another_format_is_not_guessed_at(run, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    with pytest.raises(FewstepError) as refused:
        store.load(store.find(run, 6))
    assert refused.value.code == "version"
