"""Runs that come apart are told from sound ones by their own history, and end where told to."""

from __future__ import annotations

import io
import itertools
import json
import math
import random

import pytest
from rich.console import Console

from fewstep.train import DivergedError, distill
from fewstep.train.checkpoint import store
from fewstep.train.monitor.divergence import DRIFT, GROWTH, RECENT, SPREAD, WINDOW, Divergence
from refusals import names_in, refuses

SOUND = {
    "health/std_ratio": 1.1,
    "health/mean_drift": 0.02,
    "health/fake_teacher_loss@0.3": 0.2,
    "health/fake_teacher_loss@0.7": 0.1,
}
STEP = itertools.count()
SERIES = ("grad_norm/student", "grad_norm/fake_teacher", "k/dm", "loss/fake_teacher")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=1000)


def series(steps: int, seed: int, level: float = 0.1, scatter: float = 0.8) -> list[dict]:
    """Figures of sound steps: log-normal, as gradient norms are; one in fifty is an outlier."""
    rng = random.Random(seed)
    return [
        {
            name: level * math.exp(rng.gauss(0, scatter)) * (10 if rng.random() < 0.02 else 1)
            for name in SERIES
        }
        for _ in range(steps)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_scatter_and_outliers_are_no_divergence(seed):
    judge = Divergence()
    judge.see(next(STEP), SOUND)
    for metrics in series(500, seed):
        assert not judge.see(next(STEP), metrics | SOUND).reason


@pytest.mark.parametrize("name", SERIES)
def test_a_jump_of_what_was_steady_is_told_once(name):
    judge, told = Divergence(), []
    for metrics in series(WINDOW, 0):
        judge.see(next(STEP), metrics)
    for metrics in series(RECENT, 1):
        verdict = judge.see(next(STEP), metrics | {name: 1000 * metrics[name]})
        told += [verdict.news] if verdict.news else []
    assert name in verdict.reason and (name == "loss/fake_teacher" or len(told) == 1)
    assert all(name in each for each in told)


@pytest.mark.parametrize(
    ("figure", "bound", "start"),
    [
        ("health/std_ratio", SPREAD, 1.0),
        ("health/mean_drift", DRIFT, 0.0),
        ("health/fake_teacher_loss@0.3", GROWTH, 0.2),
    ],
)
def test_health_has_two_bounds(figure, bound, start):
    own = {key: value for key, value in SOUND.items() if "@" not in key or key == figure}

    def verdict(factor: float):
        judge = Divergence()
        judge.see(next(STEP), own | {figure: start})
        return judge.see(next(STEP), own | {figure: factor * (start or 1.0)})

    assert not verdict(0.99 * bound.warn).reason
    warned, lost = verdict(1.01 * bound.warn), verdict(1.01 * bound.lost)
    assert warned.reason and warned.news and not warned.lost
    assert lost.lost
    if figure != "health/fake_teacher_loss@0.3":
        inverse = verdict(1 / (1.01 * bound.warn)) if start else verdict(-1.01 * bound.warn)
        assert inverse.reason


def test_what_swings_about_a_bound_is_told_once_until_it_is_well_within():
    judge = Divergence()
    judge.see(next(STEP), SOUND)
    news = [
        judge.see(next(STEP), {"health/std_ratio": ratio}).news
        for ratio in (2.1, 1.95, 2.05, 1.9, 1.2, 1.1)
    ]
    assert [bool(each) for each in news] == [True, False, False, False, True, False]
    assert not judge.verdict.reason


@pytest.mark.parametrize("name", ["health/std_ratio", "loss/fake_teacher", "grad_norm/student"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_past_saving(name, value):
    assert Divergence().see(1, {name: value}).lost


def test_a_judge_that_was_saved_goes_on_as_if_it_never_had_been():
    one, other = Divergence(), Divergence()
    for step, metrics in enumerate([SOUND, *series(40, 3), *series(40, 4, level=30.0)]):
        assert one.see(step, metrics) == other.see(step, metrics)
        again = Divergence()
        again.load(json.loads(json.dumps(other.state())))
        other = again
    assert one.verdict.reason == other.verdict.reason != ""


# ------------------------------------------------------------------------------------------- runs

WILD = (
    "student.optimizer.lr=1", "fake_teacher.optimizer.lr=1", "student.every=1", "train.warmup=67",
    "train.steps=20", "checkpoint.every=1", "checkpoint.keep_last=3", "health.every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped(make_recipe, tmp_path_factory):
    """A run at absurd rates, its folder and its error."""
    folder = tmp_path_factory.mktemp("wild") / "run"
    with pytest.raises(DivergedError) as caught:
        distill(make_recipe(*WILD), folder, console=quiet())
    return folder, caught.value


def test_a_run_past_saving_stops_and_says_where_to_go_on_from(stopped):
    folder, error = stopped
    assert error.code == "diverged"
    path = store.newest_healthy(folder / "checkpoints")
    assert {path.name, "--resume-from"} <= names_in(error)
    last = store.listed(folder / "checkpoints")[-1]
    state = store.read_state(last)
    assert state["step"] < 20 and state["unhealthy"] and state["past_saving"]
    assert (
        state["step"] == json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    )
    assert state["score"] is None


def test_what_is_unhealthy_is_neither_best_nor_given_out(stopped):
    folder, _ = stopped
    healthy = store.newest_healthy(folder / "checkpoints")
    assert not store.unhealthy(store.find(folder, "best"))
    last = store.listed(folder / "checkpoints")[-1]
    for which in ("last", store.step_of(last)):
        with refuses("diverged", last) as caught:
            store.find(folder, which)
        assert healthy.name in names_in(caught.value)


def test_it_is_not_resumed_but_gone_back_from(stopped, make_recipe):
    folder, _ = stopped
    with refuses("diverged", folder) as caught:
        distill(make_recipe(*WILD), folder, resume=True, console=quiet())
    assert "--resume-from" in names_in(caught.value)
    step = store.step_of(store.newest_healthy(folder / "checkpoints"))
    calm = make_recipe(*WILD, "student.optimizer.lr=1e-5", "fake_teacher.optimizer.lr=1e-5",
                       f"train.steps={step + 2}")  # fmt: skip
    distill(calm, folder, resume_from=step, console=quiet())
    assert not store.unhealthy(store.find(folder, "last"))


def test_a_run_told_to_go_on_goes_on(make_recipe, tmp_path):
    recipe = make_recipe(*WILD, "train.on_divergence=warn", "train.steps=12")
    console = quiet()
    distill(recipe, tmp_path / "run", console=console)
    last = store.listed(tmp_path / "run" / "checkpoints")[-1]
    assert store.step_of(last) == 12 and store.unhealthy(last)
    assert "unhealthy" in console.file.getvalue()
