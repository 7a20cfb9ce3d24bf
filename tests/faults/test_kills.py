"""SIGKILL at any moment loses nothing: what a resumed run ends with is bitwise the same.

After each kill, the newest checkpoint that has its name must load, and equal that of a run which
nothing happened to: weights, moments, running means and all else. Three of four kills come while a
checkpoint is being written or removed, the others at any moment from the start of the process. The
moments are a function of the test's parameters, which pytest prints.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from faults import processes, runs

WRITING = 0.02  # seconds that a checkpoint of these takes to write, or a little longer
START = 1.2  # seconds from the start of a process to its first steps
KILLS = 13  # of each of the eight kinds


def hidden(checkpoints: Path) -> set[tuple[str, int]]:
    """What is being written or removed there, or was when a run was killed."""
    found = set()
    for path in checkpoints.glob(".unfinished-*"):
        with suppress(FileNotFoundError):  # it has got its name since
            found.add((path.name, path.stat().st_ino))
    return found


def kill(job: list[processes.Command], checkpoints: Path, dice: random.Random) -> None:
    """Kills every process of a job, the first at a random moment, the others soon after."""
    if dice.random() < 0.75:
        for _ in range(dice.randint(1, 2)):  # at this checkpoint, or at the next
            before = hidden(checkpoints)
            processes.wait_for(
                lambda before=before: bool(hidden(checkpoints) - before),
                lambda: all(each.process.is_alive() for each in job),
            )
        time.sleep(dice.uniform(0, WRITING))
    else:
        time.sleep(dice.uniform(0, START))
    for each in dice.sample(job, len(job)):
        each.signal(signal.SIGKILL)
        time.sleep(dice.uniform(0, WRITING) if len(job) > 1 else 0)


def killed_again_and_again(recipe: Path, reference: Path, work: Path, kills: int, **how) -> dict:
    """Starts and resumes runs until so many were killed; returns what there was to count."""
    dice, overrides, ranks = random.Random(how["seed"]), how["overrides"], how["ranks"]
    counts = {"kills": 0, "kills in the middle of a checkpoint": 0}
    for number in range(10 * kills):
        folder = work / f"run-{number}"
        resume, newest = False, 0
        while newest < runs.STEPS:
            done = counts["kills"] == kills
            words = runs.distill(recipe, folder, *overrides, resume=resume)
            job = processes.start_job(words, work / "log", ranks=ranks)
            if not done:
                kill(job, folder / "checkpoints", dice)
            codes, said = [each.wait() for each in job], [each.said() for each in job]
            if any(codes) or done:
                assert done or -signal.SIGKILL in codes, said
                assert not (done and any(codes)), said
                counts["kills"] += any(codes)
                counts["kills in the middle of a checkpoint"] += any(codes) and bool(
                    hidden(folder / "checkpoints")
                )
            steps = runs.sealed(folder)
            reached = steps[-1] if steps else 0
            assert reached >= newest, "a checkpoint that had its name is gone"
            assert max(runs.recorded(folder), default=0) <= reached + how["behind"]
            for step in steps[-2:]:
                runs.assert_same(folder, reference, step)
            resume, newest = True, reached
        assert runs.recorded(folder) == list(range(runs.STEPS + 1))
        if counts["kills"] == kills:
            return counts
    raise AssertionError(f"runs end before they are killed: {counts}")


KINDS = [
    (mode, beside, ranks) for ranks in (1, 2) for beside in (False, True) for mode in runs.MODES
]


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        (KINDS[0], 2),
        (KINDS[3], 2),
        *(pytest.param(kind, KILLS, marks=pytest.mark.slow) for kind in KINDS),
    ],
    ids=str,
)
def test_kills_lose_nothing(kind, kills, recipe, finished, tmp_path, count):
    mode, beside, ranks = kind
    overrides = f"student={runs.MODES[mode]}", f"checkpoint.asynchronous={str(beside).lower()}"
    reference = finished(*overrides, ranks=ranks)
    found = killed_again_and_again(
        recipe,
        reference,
        tmp_path,
        kills,
        seed=f"{kind} {kills}",
        overrides=overrides,
        ranks=ranks,
        behind=2 if beside else 1,  # steps that are recorded before their checkpoint has its name
    )
    for what, number in found.items():
        count(what, number)
