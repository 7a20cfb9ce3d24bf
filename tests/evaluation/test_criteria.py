"""Criteria and the summary: what a recipe wants, held against what was measured."""

from __future__ import annotations

import json

import pytest

from fewstep.config import ConfigError, Recipe
from fewstep.config.criteria import CriterionRecipe
from fewstep.evaluation import judge, summarize
from fewstep.evaluation.summary import all_met
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import write_json

WANTED = [
    {"name": "minutes", "figure": "minutes", "at_most": 12},
    {"name": "frechet", "figure": "student@4.frechet_teacher", "at_most": 3.0},
    {
        "name": "diversity",
        "figure": "student@4.diversity",
        "at_least": {"figure": "teacher@8 guided.diversity", "times": 0.5, "plus": 0.1},
    },
    {
        "name": "lead",
        "label": "ahead",
        "figure": "student@4.lead_diversity",
        "at_least": {"figure": "student@4.lead_diversity_error", "times": 2},
    },
]


def row(name, **figures):
    return {"name": name, "evaluations": 4, "seconds_per_image": 0.1, "figures": figures}


def evaluation(**student):
    good = {"frechet_teacher": 2.0, "diversity": 0.7, "lead_diversity": 0.3}
    good |= {"lead_diversity_error": 0.1}
    rows = [row("teacher@8 guided", diversity=1.0), row("student@4", **good | student)]
    return {"configurations": rows, "which": "best", "step": 2}


def met(evaluation, **run):
    recipes = [CriterionRecipe(**wanted) for wanted in WANTED]
    return {criterion.name: criterion.met for criterion in judge(recipes, evaluation, run)}


def test_a_good_run_meets_all():
    assert set(met(evaluation(), minutes=11).values()) == {True}


@pytest.mark.parametrize(
    ("student", "failed"),
    [
        ({"frechet_teacher": 3.1}, "frechet"),
        ({"diversity": 0.59}, "diversity"),
        ({"lead_diversity_error": 0.16}, "lead"),
    ],
)
def test_each_fails_on_its_own_figure(student, failed):
    outcome = met(evaluation(**student), minutes=11)
    assert [name for name, flag in outcome.items() if flag is False] == [failed]


def test_what_was_not_measured_did_not_fail():
    missing = evaluation()
    missing["configurations"].pop(0)  # the bound of one
    del missing["configurations"][0]["figures"]["frechet_teacher"]  # the value of another
    outcome = met(missing)
    assert [name for name, flag in outcome.items() if flag is None] == [
        "minutes",
        "frechet",
        "diversity",
    ]


def test_a_run_meets_its_criteria_fails_them_or_cannot_tell():
    recipes = [CriterionRecipe(**wanted) for wanted in WANTED]

    def outcome(evaluation, **run):
        return all_met(judge(recipes, evaluation, run))

    assert outcome(evaluation(), minutes=1) is True
    assert outcome(evaluation()) is None
    assert outcome(evaluation(frechet_teacher=9.0)) is False
    assert all_met([]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"at_least": 1},  # a second bound
        {"at_most": None},  # no bound
        {"at_most": {"figure": "minutes", "time": 2}},
        {"at_most": "12"},
        {"above": 3},
    ],
)
def test_criteria_are_strict(change, make_run):
    with pytest.raises(ConfigError):
        make_run(criteria=[WANTED[0] | change])


def test_a_name_stands_for_one_criterion(make_run):
    with pytest.raises(ConfigError):
        make_run(criteria=[WANTED[0], WANTED[0]])


def test_the_demo_alone_among_recipes_is_judged(tmp_path):
    figures = {criterion.figure for criterion in Recipe.named("demo").criteria}
    assert {"minutes", "memory_gb", "student@4.accuracy"} <= figures
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    assert not Recipe.named("sd3-medium", [f"data.prompts={prompts}"]).criteria


# --------------------------------------------------------------------------------- the summary


def test_the_summary_holds_every_figure_and_keeps_the_times(make_run):
    folder = make_run(criteria=WANTED)
    write_json(folder / "evaluation.json", evaluation())
    first = summarize(folder, seconds=600, peak_memory_gb=1.5)
    assert first["criteria_met"] is True and first["seconds"] == 600
    assert first["configurations"]["student@4"]["diversity"] == 0.7
    assert {"cpu", "cores", "torch"} <= first["hardware"].keys()
    lead = first["criteria"][-1]
    assert lead["label"] == "ahead" and lead["bound"] == 0.2 and lead["met"] is True
    again = summarize(folder)
    assert again["seconds"] == 600 and again["peak_memory_gb"] == 1.5 and again["criteria_met"]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == again


def test_a_run_without_criteria_gets_no_verdict(make_run):
    folder = make_run()
    write_json(folder / "evaluation.json", evaluation())
    summary = summarize(folder, seconds=1e6, peak_memory_gb=1e3)
    assert summary["criteria"] == [] and summary["criteria_met"] is None


def test_a_run_that_was_not_evaluated_is_refused(make_run):
    with pytest.raises(FewstepError) as refused:
        summarize(make_run())
    assert refused.value.code == "missing-input"
