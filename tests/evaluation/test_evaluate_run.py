"""Evaluating a run: configurations, figures, and what is kept of the teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image

from fewstep.evaluation import evaluate_run, measure_teacher, summarize
from fewstep.evaluation.runner import make_extractor
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import Sampler
from fewstep.utils.errors import FewstepError
from toyworld_training.prompts import distinct_prompts

CONFIGURATIONS = [
    {"model": "teacher", "steps": 6, "guidance": 3.0},
    {"model": "teacher", "steps": 4, "guidance": 3.0},
    {"model": "teacher", "steps": 4, "guidance": 1.0},
    *({"model": "student", "steps": steps} for steps in (1, 2, 4)),
]
NAMES = ["teacher@6 guided", "teacher@4 guided", "teacher@4", "student@1", "student@2", "student@4"]
COUNT, REPEATS = 12, (3, 2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "heldout.txt"
    captions = map(str, distinct_prompts(20, 5, held_out=True))
    file.write_text("\n".join(captions) + "\n", encoding="utf-8")
    return {
        "prompts": str(file),
        "count": COUNT,
        "repeats": list(REPEATS),
        "configurations": CONFIGURATIONS,
        "gallery": 2,
    }


@pytest.fixture(scope="module")
def run(make_run, settings):
    return make_run(evaluate=settings)


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run)


def rows(evaluation):
    return {row["name"]: row for row in evaluation["configurations"]}


def test_every_configuration_has_every_figure(run, evaluation):
    assert evaluation == json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    found = rows(evaluation)
    assert list(found) == NAMES
    assert [row["evaluations"] for row in found.values()] == [12, 8, 4, 1, 2, 4]
    assert evaluation["reference"] == "teacher@6 guided" and evaluation["step"] == 2
    for name, row in found.items():
        figures = row["figures"]
        assert row["seconds_per_image"] > 0 and {"diversity", "diversity_error"} <= figures.keys()
        reference = name == "teacher@6 guided"
        assert ("frechet_teacher" in figures) == ("coverage_teacher" in figures) != reference
        # Only of equal steps is the guided teacher a baseline.
        assert ("lead_diversity_error" in figures) == (name == "student@4")
        assert not any("real" in figure for figure in figures)
        assert row["measured"]["where"] == "now"
    assert found["student@4"]["sigmas"] == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert evaluation["columns"]["frechet_teacher"]["higher_is_better"] is False
    assert evaluation["columns"].keys() <= set().union(*(row["figures"] for row in found.values()))


def test_a_run_without_criteria_is_measured_and_not_judged(run, evaluation):
    summary = summarize(run)
    assert summary["criteria_met"] is None and not summary["criteria"]
    assert summary["configurations"].keys() == set(NAMES)


def test_the_guided_teacher_on_another_grid_is_no_baseline(make_run, settings):
    moved = {**CONFIGURATIONS[1], "shift": 1.26}
    configurations = [moved, CONFIGURATIONS[1], CONFIGURATIONS[-1]]
    run = make_run(evaluate={**settings, "configurations": configurations})
    first, second, student = evaluate_run(run)["configurations"]
    assert first["name"] != second["name"] == "teacher@4 guided"
    lead = student["figures"]["lead_diversity"]
    difference = student["figures"]["diversity"] - second["figures"]["diversity"]
    assert lead == pytest.approx(difference, abs=1e-5)


def test_the_gallery_holds_a_picture_per_prompt_and_configuration(run, evaluation):
    for row in evaluation["configurations"]:
        assert [(run / file).is_file() for file in row["gallery"]] == [True, True]
    shown = json.loads((run / "evaluation" / "gallery.json").read_text(encoding="utf-8"))
    assert len(shown["prompts"]) == 2


def test_real_pictures_of_a_folder_are_one_more_reference(make_run, settings, tmp_path):
    for number in range(10):
        Image.new("RGB", (80, 64), (number * 20, 90, 255 - number)).save(tmp_path / f"{number}.png")
    change = {"references": f"folder:{tmp_path}", "configurations": CONFIGURATIONS[-1:]}
    evaluation = evaluate_run(make_run(evaluate={**settings, **change}))
    (student,) = evaluation["configurations"]
    assert student["figures"]["frechet_real"] > 0
    assert "coverage_real" in student["figures"] and "real" not in evaluation


def test_lora_configurations_are_teacher_and_student_of_one_network(make_run, settings):
    chosen = CONFIGURATIONS[2:3] + CONFIGURATIONS[-1:]
    run = make_run("lora", evaluate={**settings, "configurations": chosen})
    teacher, student = evaluate_run(run)["configurations"]
    assert teacher["figures"] != student["figures"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompts": None}, "missing-input"),
        ({"metrics": ["frechet", "diversty"]}, "unknown-name"),
        ({"metrics": ["clip_score"]}, "config"),
        ({"references": "scene"}, "unknown-name"),
        ({"features": "pixel"}, "unknown-name"),
    ],
)
def test_mistakes_stop_before_anything_is_drawn(make_run, settings, change, code):
    run = make_run(evaluate={**settings, **change})
    with pytest.raises(FewstepError) as refused:
        evaluate_run(run)
    assert refused.value.code == code
    assert not (run / "evaluation.json").exists() and not (run / "evaluation").exists()


# ----------------------------------------------------------------- what is kept of the teacher


def test_the_teacher_is_drawn_once_and_the_student_always(run, evaluation):
    again = rows(evaluate_run(run))
    assert [row["measured"]["where"] for row in again.values()] == ["cache"] * 3 + ["now"] * 3
    assert {"date", "hardware"} <= again["teacher@4"]["measured"].keys()
    for name, row in rows(evaluation).items():
        assert again[name]["figures"] == pytest.approx(row["figures"], abs=1e-4)


def test_measurements_that_came_with_the_model_spare_drawing_the_teacher(
    make_run, settings, evaluation, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "empty"))
    run = make_run(evaluate={**settings, "cache": str(tmp_path / "shipped")})
    files = measure_teacher(RunFolder.open(run).recipe, tmp_path / "shipped")
    assert list(files) == NAMES[:3]
    assert set(files.values()) == set((tmp_path / "shipped").iterdir())
    shipped = rows(evaluate_run(run))
    assert [row["measured"]["where"] for row in shipped.values()] == ["shipped"] * 3 + ["now"] * 3
    assert not (tmp_path / "empty").exists()
    for name, row in rows(evaluation).items():
        assert shipped[name]["figures"] == pytest.approx(row["figures"], rel=0.02, abs=1e-3)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"count": 11}, {"repeats": [3, 3]}, {"metrics": ["accuracy"]}]
)
def test_what_measurements_depend_on_is_in_their_key(make_run, settings, change):
    folders = [make_run(evaluate=given) for given in (settings, {**settings, **change})]
    keys = {make_extractor(RunFolder.open(folder).recipe.evaluate).key for folder in folders}
    assert len(keys) == 2


def test_the_other_checkpoint_gives_other_figures(run, evaluation):
    last = evaluate_run(run, which="last")
    assert last["step"] == 4
    before, after = rows(evaluation), rows(last)
    assert after["teacher@4"]["figures"] == pytest.approx(before["teacher@4"]["figures"])
    assert after["student@4"]["figures"] != before["student@4"]["figures"]


@dataclass
class Watching:
    """A feature space that remembers how many pictures it saw at a time."""

    key: str = "watching"
    seen: list[int] = field(default_factory=list)

    def __call__(self, images):
        self.seen.append(len(images))
        return images.mean((2, 3))


def test_pictures_are_measured_as_they_are_drawn(run):
    opened = RunFolder.open(run)
    backbone, extractor = opened.load_backbone(), make_extractor(opened.recipe.evaluate)
    watching = Watching()
    small = type(extractor)(extractor.prompts, REPEATS, 0, watching, batch=5)
    measured = small.read(backbone, backbone.net, Sampler(1, 1.0, *opened.size)).features
    assert sum(watching.seen) == COUNT + 3 and max(watching.seen) == 5
    assert measured.repeated.shape == (*REPEATS, 3)
    # The single picture is the first of the repeated ones.
    assert torch.equal(measured.repeated[:, 0], measured.single[:3])
    assert not torch.equal(measured.repeated[:, 1], measured.single[:3])
