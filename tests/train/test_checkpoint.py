"""Which checkpoints stay, and which one is meant."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat

import pytest
import torch

from fewstep.train.checkpoint import store
from fewstep.utils.disk import WriteFailed
from fewstep.utils.errors import FewstepError
from refusals import names_in, refuses

resource = pytest.importorskip("resource") if os.name != "nt" else None

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
    with monkeypatch.context() as later:
        later.setattr(store, "FORMAT", 3)
        store.save(run / "checkpoints", 7, {"student": {"w": torch.zeros(1)}}, {})
    with refuses("version", "step-00000007", store.BrokenCheckpointError):
        store.load(store.find(run, 7))


@pytest.mark.parametrize(
    "wrong",
    [
        {"files": {"../../config.yaml": "0" * 64}},
        {"files": {".hidden.safetensors": "0" * 64}},
        {"files": {"student.safetensors": "short"}},
        {"files": ["student.safetensors"]},
        {"step": -1},
        {"step": "6"},
        {"step": None},
        {"score": "good"},
    ],
)
def test_a_state_of_another_shape_is_refused_though_its_sum_is_right(wrong, run):
    path = store.find(run, 6)
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    content = {**state, **wrong}
    text = json.dumps(content, sort_keys=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(content))
    with refuses("damaged", path.name, store.BrokenCheckpointError):
        store.check(path)
    found, broken = store.newest(run / "checkpoints")
    assert found is not None and found.state["step"] == 5 and [*broken] == [path]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "[" * 200_000, "{", '{"sha256": ""}', "\0"]
)
def test_a_state_that_is_no_state_is_refused(text, run):
    path = store.find(run, 6)
    (path / "state.json").write_text(text)
    with refuses("damaged", path.name, store.BrokenCheckpointError):
        store.load(path)


def test_other_names_are_no_checkpoints(run):
    folder = run / "checkpoints"
    (folder / "step-zzz").mkdir()
    (folder / "step-00000009").write_text("a file")
    assert steps(run) == sorted(SCORES)
    assert store.find(run, "last").name == "step-00000006"
    store.save(folder, 9, {"student": {"w": torch.zeros(1)}}, {})  # and none is in the way
    assert store.find(run, "last").name == "step-00000009"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_full_disk_leaves_what_is_sealed_and_nothing_else(run):
    """A bound on the size of files stands in for a full disk: any user may set it."""
    folder = run / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def limited(answers):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            store.save(folder, 7, {"student": {"w": torch.zeros(10_000)}}, {})
        except WriteFailed as error:
            answers.put(str(error))

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=limited, args=(answers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert str(folder / "step-00000007") in names_in(answers.get())
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert after == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_weights_have_the_rights_that_the_umask_leaves(run):
    before = os.umask(0o027)
    try:
        path = store.save(run / "checkpoints", 7, {"student": {"w": torch.zeros(1)}}, {})
    finally:
        os.umask(before)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (path, *path.iterdir())}
    assert modes == {path.name: 0o750, "student.safetensors": 0o640, "state.json": 0o640}
