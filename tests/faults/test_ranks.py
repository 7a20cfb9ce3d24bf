"""What one process of several meets is met by all: they stop together, and nothing has moved."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from faults import processes, runs

WHEN = 5  # finished steps, when one process gets what is not finite
SOURCES = {"student": "evaluate", "fake_teacher": "update_loss"}


def poison(source: str, value: float) -> None:
    """Spoils a loss of the second process, in one iteration of this role."""
    from fewstep.train import step

    real = getattr(step, SOURCES[source])

    def spoiled(*arguments, **settings):
        result = real(*arguments, **settings)
        if source == "student":
            if arguments[2].draws.step == WHEN:
                for term in result:
                    object.__setattr__(term, "loss", term.loss * value)
            return result
        return result * value if settings["draws"].step == WHEN else result

    if os.environ["RANK"] == "1":
        setattr(step, SOURCES[source], spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("source", SOURCES)
def test_nan_on_one_rank_stops_all(source, value, recipe, finished, tmp_path, count):
    folder, overrides = tmp_path / "run", ("checkpoint.every=2",)
    spoil = partial(poison, source, float(value))
    words = runs.distill(recipe, folder, *overrides)
    job = processes.start_job(words, tmp_path / "log", ranks=2, before=spoil)
    codes, said = [each.wait() for each in job], [each.said() for each in job]
    assert codes == [2, 2], said
    assert not any("Traceback" in text for text in said), said
    assert f"step {WHEN + 1}" in said[0], said
    assert runs.recorded(folder)[-1] == WHEN
    assert runs.sealed(folder)[-1] == WHEN - 1
    count("values that are not finite on one process of two")

    again = runs.distill(recipe, folder, *overrides, resume=True)
    for each in processes.start_job(again, tmp_path / "log", ranks=2):
        assert each.wait() == 0, each.said()
    runs.assert_same(folder, finished(*overrides, ranks=2), runs.STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_has_moved(source, recipe, finished, tmp_path):
    """Weights, moments and the mean in memory are still those of the step before, on every rank."""
    folder, kept = tmp_path / "run", tmp_path / "kept"
    words = runs.distill(recipe, folder, "checkpoint.every=100")
    spoil = partial(save_when_stopped, source, kept)
    job = processes.start_job(words, tmp_path / "log", ranks=2, before=spoil)
    assert [each.wait() for each in job] == [2, 2], job[0].said()
    _, before = runs.content(finished(ranks=2), WHEN)
    for rank in range(2):
        found = torch.load(f"{kept}-{rank}")
        moved = ("fake_teacher/", "ema/", "student/")
        names = [n for n in found if n.startswith(moved if source == "fake_teacher" else moved[1:])]
        assert names
        for name in names:
            assert torch.equal(found[name], before[name]), name


def save_when_stopped(source: str, kept) -> None:
    """As `poison`, and writes down what the process holds when it stops."""
    from fewstep.train import trainer
    from fewstep.train.optim import NonFiniteError
    from fewstep.train.state import groups

    poison(source, float("nan"))
    real = trainer.advance

    def advance(run, *arguments):
        try:
            return real(run, *arguments)
        except NonFiniteError:
            tensors = {
                f"{group}/{name}": getattr(tensor, "full_tensor", lambda t=tensor: t)()
                for group, named in groups(run).items()
                for name, tensor in named.items()
            }
            torch.save(tensors, f"{kept}-{os.environ['RANK']}")
            raise

    trainer.advance = advance
