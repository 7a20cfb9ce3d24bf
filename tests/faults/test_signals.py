"""Signals at random moments: the state is saved, or there was nothing to lose; never a traceback.

While training the step is finished and saved, and the exit code is 0. At any other time, loading
included, the exit code is 128 plus the signal's number, one line names the signal, and what was
being written has vanished. A process that has not got to fewstep yet, or has done its work, simply
ends.
"""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from faults import processes, runs

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
BUSY = ("preview.every=1", "checkpoint.every=1", "train.steps=8")  # always drawing or saving


def half_written(folder: Path) -> list[Path]:
    """What is left of files that were being written, anywhere below a folder."""
    names = ("*.tmp", ".unfinished-*")
    return [path for name in names for path in folder.rglob(name)] if folder.exists() else []


def assert_in_order(code: int, said: str, number: signal.Signals, touched: Path) -> None:
    """The end of a process that got a signal."""
    assert code in (0, 128 + number, -number), said
    for word in ("Traceback", "Exception ignored", "Error"):
        assert word not in said, said
    if code == 128 + number:
        assert sum(number.name in line for line in said.splitlines()) == 1, said
    assert not half_written(touched)


@pytest.mark.parametrize(
    "times", [4, pytest.param(40, marks=pytest.mark.slow)], ids="{} signals".format
)
def test_training(times, recipe, finished, tmp_path, count):
    """Loading, drawing, stepping and saving; then the run goes on to the same end."""
    dice, reference = random.Random(times), finished(*BUSY)
    folder, number = tmp_path / "run-0", 0
    for each in range(times):
        stop = STOPS[each % len(STOPS)]
        words = runs.distill(recipe, folder, *BUSY, resume=folder.exists())
        command = processes.start(words, tmp_path / "log")
        time.sleep(dice.uniform(0.0, 1.6))
        command.signal(stop)
        code, said = command.wait(), command.said()
        assert_in_order(code, said, stop, folder)
        steps = runs.sealed(folder)
        for step in steps[-1:]:
            runs.assert_same(folder, reference, step)
        if code == 0:  # whatever was begun is finished and saved
            assert runs.recorded(folder)[-1] == steps[-1]
        if steps[-1:] == [runs.STEPS]:
            number += 1
            folder = tmp_path / f"run-{number}"
    count("signals", times)
    assert processes.run(runs.distill(recipe, folder, *BUSY, resume=True), tmp_path / "log")[0] == 0
    runs.assert_same(folder, reference, runs.STEPS)


def speak_to(path: str) -> None:
    """Sends what a process says, there to stdout and stderr, into a pipe or a terminal."""
    handle = os.open(path, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(handle, number)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("listener", ["terminal", "pipe"])
def test_whoever_listened_has_gone(listener, recipe, finished, tmp_path):
    """A terminal that closes sends SIGHUP: the step is saved. A pipe to `head`: the run goes on."""
    if listener == "terminal":
        near, far = os.openpty()
        path = os.ttyname(far)
    else:
        path, far = str(tmp_path / "pipe"), None
        os.mkfifo(path)
        near = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    words, folder = runs.distill(recipe, tmp_path / "run", *BUSY), tmp_path / "run"
    command = processes.start(words, tmp_path / "log", before=partial(speak_to, path))
    assert processes.wait_for(lambda: 1 in runs.recorded(folder), command.process.is_alive)
    for handle in (near, far):
        if handle is not None:
            os.close(handle)
    assert command.wait() == 0
    steps = runs.sealed(folder)
    assert steps[-1] == runs.recorded(folder)[-1]
    assert listener == "terminal" or steps[-1] == runs.STEPS
    runs.assert_same(folder, finished(*BUSY), steps[-1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
def test_training_of_several_processes(ranks, recipe, finished, tmp_path, count):
    """Whichever gets it, all end; what was sealed is right, and the run goes on to the same end."""
    dice, reference = random.Random(ranks), finished(*BUSY, ranks=ranks)
    folder, number = tmp_path / "run-0", 0
    for each in range(12):
        words = runs.distill(recipe, folder, *BUSY, resume=folder.exists())
        job = processes.start_job(words, tmp_path / "log", ranks=ranks)
        time.sleep(dice.uniform(0.0, 2.5))
        heard = dice.sample(job, dice.randint(1, ranks))
        for one in heard:
            one.signal(STOPS[each % len(STOPS)])
        time.sleep(0.5)
        if any(one.process.exitcode not in (None, 0) for one in job):
            for one in job:  # as torchrun ends the others when one has ended
                one.signal(signal.SIGTERM)
        codes, said = [one.wait() for one in job], [one.said() for one in job]
        assert not any("Traceback" in text for text in said), said
        steps = runs.sealed(folder)
        for step in steps[-1:]:
            runs.assert_same(folder, reference, step)
        if not any(codes):
            assert runs.recorded(folder)[-1] == steps[-1]
        if steps[-1:] == [runs.STEPS]:
            number += 1
            folder = tmp_path / f"run-{number}"
    count("signals", 12)


def commands(recipe: Path, run_folder: Path, out: Path) -> dict[str, list[str]]:
    """Every other command that computes; each writes to a place of its own."""
    prompts, model = recipe.parent / "prompts.txt", recipe.parent / "model"
    return {
        "sample": ["sample", str(run_folder), "--prompts", str(prompts), "--out", str(out)],
        "export": ["export", str(run_folder), "--out", str(out)],
        "encode": ["encode", str(prompts), "--model", str(model), "--out", str(out)],
        "evaluate": ["evaluate", str(run_folder)],
        "plan": ["plan", str(recipe), "--gpu", "h100-80"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "export", "encode", "evaluate", "plan"])
def test_other_commands(name, recipe, finished, tmp_path, count):
    """The result is there, whole, or not at all; the command again gives it."""
    dice, run_folder = random.Random(name), processes.copied(finished(), tmp_path / "run")
    words = commands(recipe, run_folder, tmp_path / "out")[name]
    began = time.monotonic()
    assert processes.run(words, tmp_path / "log")[0] == 0, (tmp_path / "log.err").read_text()
    whole = time.monotonic() - began
    for each in range(8):
        out = tmp_path / f"out-{each}"
        words = commands(recipe, run_folder, out)[name]
        command, stop = processes.start(words, tmp_path / "log"), STOPS[each % len(STOPS)]
        time.sleep(dice.uniform(0.0, whole))
        command.signal(stop)
        assert_in_order(command.wait(), command.said(), stop, tmp_path)
        assert processes.run(words, tmp_path / "log")[0] == 0, (tmp_path / "log.err").read_text()
    count("signals", 8)
