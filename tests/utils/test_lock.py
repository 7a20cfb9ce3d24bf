"""One process at a time works in a folder, and what a killed one left there is recognised."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest

from fewstep.utils.files import made
from fewstep.utils.lock import at_work, locked
from refusals import names_in, refuses

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def holder(folder):
    """The file that says who holds a folder's lock."""
    (file,) = folder.glob("*.json")
    return file


def elsewhere(folder, **about):
    """Leaves what a process on another machine leaves that still runs, or was killed."""

    def killed():
        with locked(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    file = holder(folder)
    file.write_text(json.dumps({**json.loads(file.read_text()), **about}))
    return file


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind(error, tmp_path):
    folder = tmp_path / "deep" / "run"
    try:
        with locked(folder) as note:
            assert note is None and folder.is_dir()
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_meanwhile_stays(tmp_path):
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_second_one_is_refused_and_told_who_the_first_is(tmp_path):
    with locked(tmp_path), refuses("no-access", tmp_path) as refused, locked(tmp_path):
        pass
    assert str(os.getpid()) in names_in(refused.value)
    with locked(tmp_path):  # the refused one left nothing and took nothing away
        pass


@needs_fork
def test_a_killed_one_is_recognised_and_taken_over_from(tmp_path):
    pid = json.loads(elsewhere(tmp_path).read_text())["pid"]
    with locked(tmp_path) as note:
        assert str(pid) in names_in(note)
        assert json.loads(holder(tmp_path).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@needs_fork
def test_whether_somebody_is_at_work_is_told_without_taking_the_lock(tmp_path):
    assert at_work(tmp_path) is False
    with locked(tmp_path):
        assert at_work(tmp_path) is True
    file = elsewhere(tmp_path)
    assert at_work(tmp_path) is False, "it was killed"
    left = json.loads(file.read_text())
    file.write_text(json.dumps({**left, "pid": os.getpid(), "since": "2020-01-01 00:00:00 +0000"}))
    assert at_work(tmp_path) is False, "this process has only inherited the number"
    file.write_text(json.dumps({**left, "host": "node-7"}))
    assert at_work(tmp_path) is None


@needs_fork
def test_another_machine_is_believed_until_its_file_is_removed(tmp_path):
    file = elsewhere(tmp_path, host="node-7")
    with refuses("no-access", tmp_path) as refused, locked(tmp_path):
        pass
    assert {"node-7", str(file)} <= names_in(refused.value)
    file.unlink()
    with locked(tmp_path) as note:
        assert note is None


@needs_fork
@pytest.mark.parametrize(
    ("job", "restarts", "taken"), [("12", 1, True), ("12", 0, False), ("13", 1, False)]
)
def test_a_job_that_slurm_queued_again_takes_over(job, restarts, taken, tmp_path, monkeypatch):
    elsewhere(tmp_path, host="node-7", slurm_job="12", slurm_restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    if not taken:
        with refuses("no-access", tmp_path), locked(tmp_path):
            pass
        return
    with locked(tmp_path) as note:
        assert "node-7" in names_in(note)


@needs_fork
@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"host": 3, "pid": []}'])
def test_a_damaged_file_is_not_believed(content, tmp_path):
    elsewhere(tmp_path).write_text(content)
    if "host" in content:
        with refuses("no-access", tmp_path), locked(tmp_path):
            pass
        return
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_go_if_they_stay_empty(tmp_path):
    with made(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with made(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
