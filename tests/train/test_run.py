"""A run in one's own loop: what it yields, leaving it at any time, its student on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fewstep import Run
from fewstep import open as open_model
from fewstep.train import distill
from fewstep.utils.errors import FewstepError

STEPS = 6


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def in_one_go(make_recipe, tmp_path_factory):
    """The run that all others must equal."""
    return distill(make_recipe(), tmp_path_factory.mktemp("run") / "run")


def test_breaking_off_and_going_on_changes_nothing(make_recipe, in_one_go, tmp_path, same_end):
    folder = tmp_path / "run"
    with Run(make_recipe(), folder) as run:
        for step, _ in run:
            if step == 3:  # the recipe saves at 2, 4 and 6
                break
    assert run.completed == 3 and (folder / "checkpoints" / "step-00000003").is_dir()
    with Run(make_recipe(), folder, resume=True) as run:
        yielded = dict(run)
    assert list(yielded) == [4, 5, 6]
    same_end(in_one_go, folder, STEPS)
    written = {line["step"]: line for line in lines(folder)}
    assert all({"step": step, **metrics} == written[step] for step, metrics in yielded.items())


def test_steps_by_hand_are_those_of_the_loop(make_recipe, in_one_go, tmp_path, same_end):
    with Run(make_recipe(), tmp_path / "run") as run:
        for _ in range(STEPS):
            assert run.step()["loss/fake_teacher"] > 0
        with pytest.raises(FewstepError) as caught:
            run.step()
    assert caught.value.code == "out-of-range"
    same_end(in_one_go, tmp_path / "run", STEPS)


def test_an_error_in_the_loop_leaves_the_newest_checkpoint(
    make_recipe, in_one_go, tmp_path, same_end
):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), Run(make_recipe(), folder) as run:
        for step, _ in run:
            if step == 5:
                raise ZeroDivisionError
    assert max(path.name for path in (folder / "checkpoints").iterdir()) == "step-00000004"
    with Run(make_recipe(), folder, resume=True) as run:
        assert run.completed == 4
        for _ in run:
            pass
    same_end(in_one_go, folder, STEPS)


@pytest.mark.parametrize("mode", [[], ["student.mode=lora", "student.lora.rank=4"]])
def test_the_student_in_training_is_the_one_that_is_saved(make_recipe, tmp_path, mode):
    with Run(make_recipe(*mode), tmp_path / "run") as run:
        untrained = run.student.sample(["a red circle"])
        run.step()
        run.step()
        drawn = run.student.sample(["a red circle"], seed=3)
        assert run.save().name == "step-00000002"
        assert run.preview().is_file()
        with pytest.raises(FewstepError) as caught:
            run.student.export(tmp_path / "out")
        assert caught.value.code == "unsupported"
        again = run.student.sample(["a red circle"], seed=3)
    opened = open_model(tmp_path / "run", which=2).sample(["a red circle"], seed=3)
    assert drawn[0].tobytes() == again[0].tobytes() == opened[0].tobytes()
    assert not np.array_equal(np.array(untrained[0]), np.array(drawn[0]))


def test_looking_at_the_student_changes_nothing(make_recipe, in_one_go, tmp_path, same_end):
    with Run(make_recipe(), tmp_path / "run") as run:
        for _ in run:
            run.student.sample(["a red circle"], steps=1)
            run.preview()
    same_end(in_one_go, tmp_path / "run", STEPS)


def test_a_run_is_neither_overwritten_nor_used_when_closed(make_recipe, in_one_go, tmp_path):
    before = sorted(in_one_go.rglob("*"))
    with pytest.raises(FewstepError) as caught, Run(make_recipe(), in_one_go):
        pass
    assert caught.value.code == "exists"
    with Run(make_recipe(), in_one_go, resume=True) as run:
        assert list(run) == []
    assert sorted(in_one_go.rglob("*")) == before
    with pytest.raises(FewstepError) as caught:
        run.step()
    assert caught.value.code == "usage"
