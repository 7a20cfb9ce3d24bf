"""Bars and the summary: met only if measured, and all of them together."""

from __future__ import annotations

import json

import pytest

from fewstep.evaluation import criteria, summarize
from fewstep.evaluation.configurations import Configuration
from fewstep.inference.sample import Sampler
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_json

GOOD = {
    ("teacher", 50, 4.0): (0.96, 10.0, 2.0),
    ("teacher", 4, 4.0): (0.60, 60.0, 1.5),
    ("teacher", 4, 1.0): (0.40, 90.0, 1.6),
    ("student", 4, 1.0): (0.95, 12.0, 1.7),
    ("student", 1, 1.0): (0.10, 99.0, 0.2),
}


def evaluation(figures=GOOD, truth="scenes"):
    configurations = []
    for (model, steps, guidance), (right, frechet, diversity) in figures.items():
        scores = {"right": right, "right_error": 0.01, "frechet_real": frechet}
        scores |= {"diversity": 1.0, "diversity_right": diversity, "diversity_right_error": 0.3}
        if model == "student":
            baseline = figures.get(("teacher", 4, 4.0))
            if baseline is not None:
                scores |= {"ahead_right": right - baseline[0], "ahead_right_error": 0.01}
                scores |= {"ahead_diversity_right": diversity - baseline[2]}
                scores |= {"ahead_diversity_right_error": 0.05}
        configurations.append(
            {
                "name": f"{model}@{steps}{'' if guidance == 1 else ' guided'}",
                "model": model,
                "steps": steps,
                "guidance": guidance,
                "evaluations": steps * (1 if guidance == 1 else 2),
                "seconds_per_image": 0.1,
                "scores": scores,
            }
        )
    return {"configurations": configurations, "truth": truth, "step": 3, "which": "best"}


def met(found):
    return {criterion.name: criterion.met for criterion in found}


def test_all_bars_hold_for_a_good_run():
    found = met(criteria(evaluation(), minutes=11.9, gigabytes=3.9))
    assert len(found) == 8 and all(found.values())


@pytest.mark.parametrize(
    ("student", "failed"),
    [
        ((0.93, 12.0, 1.7), {"right"}),
        ((0.95, 12.6, 1.7), {"frechet_real"}),
        ((0.95, 12.0, 1.59), {"diversity", "diversity_ahead"}),
        ((0.61, 12.0, 1.7), {"right", "right_ahead"}),
        ((0.95, 49.0, 1.7), {"frechet_real", "frechet_real_ahead"}),
    ],
)
def test_each_bar_fails_on_its_own_figure(student, failed):
    figures = {**GOOD, ("student", 4, 1.0): student}
    found = met(criteria(evaluation(figures), minutes=1, gigabytes=1))
    assert {name for name, held in found.items() if not held} == failed


def test_what_was_not_measured_is_not_met():
    found = met(criteria(evaluation()))
    assert not found["minutes"] and not found["gigabytes"]
    without = {key: value for key, value in GOOD.items() if key != ("student", 4, 1.0)}
    found = met(criteria(evaluation(without), minutes=1, gigabytes=1))
    assert [name for name, held in found.items() if held] == ["minutes", "gigabytes"]
    lone = {key: value for key, value in GOOD.items() if key[0] == "student"}
    assert sum(met(criteria(evaluation(lone), minutes=1, gigabytes=1)).values()) == 2


def test_guidance_alone_does_not_make_a_rival():
    # Without the guided 4-step teacher the criteria about it stand, unmet.
    without = {key: value for key, value in GOOD.items() if key != ("teacher", 4, 4.0)}
    found = met(criteria(evaluation(without), minutes=1, gigabytes=1))
    assert not found["right_ahead"] and found["right"]


def test_the_guided_teacher_on_another_grid_is_no_rival():
    # Named apart in the table, and not what the student is measured against.
    other = Configuration("teacher", Sampler(4, 4.0, 64, 64, shift=1.26), own_shift=False)
    assert other.name == "teacher@4 guided shift 1.26"
    found = evaluation()
    stronger = {"right": 0.94, "right_error": 0.01, "frechet_real": 9.0}
    stronger |= {"diversity": 9.0, "diversity_right": 9.0}
    baseline = next(
        configuration
        for configuration in found["configurations"]
        if configuration["name"] == "teacher@4 guided"
    )
    moved = baseline | {"name": other.name, "own_shift": False, "scores": stronger}
    found["configurations"].insert(0, moved)
    assert all(met(criteria(found, minutes=1, gigabytes=1)).values())
    moved["own_shift"] = True
    assert not met(criteria(found, minutes=1, gigabytes=1))["frechet_real_ahead"]


def test_clearly_ahead_is_told_on_the_prompts_that_both_have_a_figure_for():
    found = evaluation()
    student = next(
        configuration
        for configuration in found["configurations"]
        if configuration["name"] == "student@4"
    )["scores"]
    student["ahead_diversity_right"] = 0.11  # less than the difference of the two means
    assert met(criteria(found, minutes=1, gigabytes=1))["diversity_ahead"]
    student["ahead_diversity_right"] = 0.09  # less than two errors
    assert not met(criteria(found, minutes=1, gigabytes=1))["diversity_ahead"]


def test_the_summary_holds_every_figure_and_keeps_the_times(tmp_path):
    write_json(tmp_path / "evaluation.json", evaluation())
    first = summarize(tmp_path, seconds=600, peak_memory_gb=1.5)
    assert first["criteria_met"] and first["seconds"] == 600
    assert first["configurations"]["student@4"]["right"] == 0.95
    assert {"cpu", "cores", "torch"} <= first["hardware"].keys()
    again = summarize(tmp_path)
    assert again["seconds"] == 600 and again["peak_memory_gb"] == 1.5 and again["criteria_met"]
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == again


def test_an_unmeasured_run_never_meets_all_bars(tmp_path):
    write_json(tmp_path / "evaluation.json", evaluation())
    assert summarize(tmp_path)["criteria_met"] is False


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(FewstepError, match="not evaluated yet"):
        summarize(tmp_path)
