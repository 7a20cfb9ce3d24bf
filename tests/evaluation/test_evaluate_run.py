"""Evaluating a run: configurations, figures, what is kept, criteria and the summary."""

from __future__ import annotations

import json

import pytest
import torch

from fewstep.evaluation import configurations, evaluate_run, runner, summarize
from fewstep.evaluation.oracles import Scenes
from fewstep.evaluation.runner import make_extractor
from fewstep.inference.load import Run
from fewstep.inference.sample import Sampler
from fewstep.toyworld.scenes import distinct_prompts
from fewstep.utils.errors import FewstepError

ARMS = [
    {"model": "teacher", "steps": 6, "guidance": 3.0},
    {"model": "teacher", "steps": 4, "guidance": 3.0},
    {"model": "teacher", "steps": 4, "guidance": 1.0},
    *({"model": "student", "steps": steps} for steps in (1, 2, 4)),
]
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
        "configurations": ARMS,
        "gallery": 2,
        "truth": "scenes",
    }


@pytest.fixture(scope="module")
def run(make_run, settings):
    return make_run(evaluate=settings)


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run)


def test_every_arm_has_every_figure(run, evaluation):
    assert evaluation == json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    names = [configuration["name"] for configuration in evaluation["configurations"]]
    assert names == [
        "teacher@6 guided",
        "teacher@4 guided",
        "teacher@4",
        "student@1",
        "student@2",
        "student@4",
    ]
    assert [configuration["evaluations"] for configuration in evaluation["configurations"]] == [
        12,
        8,
        4,
        1,
        2,
        4,
    ]
    assert evaluation["reference"] == "teacher@6 guided" and evaluation["step"] == 2
    for configuration in evaluation["configurations"]:
        assert configuration["seconds_per_image"] > 0
        assert {"right", "right_color", "diversity", "frechet_real"} <= configuration[
            "scores"
        ].keys()
        assert ("frechet_teacher" in configuration["scores"]) == (
            configuration["name"] != "teacher@6 guided"
        )
        # Only of equal steps is the guided teacher a baseline.
        assert ("ahead_diversity_error" in configuration["scores"]) == (
            configuration["name"] == "student@4"
        )
    real = evaluation["real"]["scores"]
    assert real["right"] >= 0.9  # real scenes are right; twelve random pictures are not
    assert real["frechet_real"] < min(
        a["scores"]["frechet_real"] for a in evaluation["configurations"]
    )
    assert evaluation["configurations"][-1]["sigmas"] == [1.0, 0.9, 0.75, 0.5, 0.0]


def test_the_gallery_holds_a_picture_per_prompt_and_arm(run, evaluation):
    for configuration in evaluation["configurations"]:
        assert [(run / file).is_file() for file in configuration["gallery"]] == [True, True]
    shown = json.loads((run / "evaluation" / "gallery.json").read_text(encoding="utf-8"))
    assert len(shown["prompts"]) == 2


def test_the_teacher_is_drawn_once_and_the_student_always(run, evaluation, monkeypatch):
    drawn = []
    real = configurations.Extractor.read

    def counting(self, backbone, net, sampler):
        drawn.append(sampler)
        return real(self, backbone, net, sampler)

    monkeypatch.setattr(configurations.Extractor, "read", counting)
    again = evaluate_run(run)
    assert [sampler.steps for sampler in drawn] == [1, 2, 4]
    assert [configuration["kept"] for configuration in evaluation["configurations"]] == [False] * 6
    assert [configuration["kept"] for configuration in again["configurations"]] == [True] * 3 + [
        False
    ] * 3
    for old, new in zip(evaluation["configurations"], again["configurations"], strict=True):
        assert new["scores"] == pytest.approx(old["scores"], abs=1e-4)


def test_readings_that_came_with_the_model_spare_drawing_the_teacher(
    make_run, settings, tmp_path, monkeypatch
):
    recipe = Run.open(
        make_run(evaluate={**settings, "measurements": str(tmp_path / "kept")})
    ).recipe
    names = runner.keep_teacher(recipe, tmp_path / "kept")
    assert names == ["teacher@6 guided", "teacher@4 guided", "teacher@4"]
    assert len(list((tmp_path / "kept").iterdir())) == 3
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "empty"))
    run = make_run(evaluate={**settings, "measurements": str(tmp_path / "kept")})
    evaluate_run(run)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 11}, {"repeats": [3, 3]}])
def test_what_readings_depend_on_is_in_their_key(make_run, settings, change):
    recipes = [make_run(evaluate=given) for given in (settings, {**settings, **change})]
    keys = {runner.make_extractor(Run.open(folder).recipe.evaluate).key for folder in recipes}
    assert len(keys) == 2


def test_the_other_checkpoint_gives_other_figures(run, evaluation):
    last = evaluate_run(run, which="last")
    assert last["step"] == 4
    assert last["configurations"][0]["scores"] == evaluation["configurations"][0]["scores"]
    assert last["configurations"][-1]["scores"] != evaluation["configurations"][-1]["scores"]


def test_without_a_truth_the_scores_that_apply_remain(make_run, settings):
    run = make_run(evaluate={**settings, "truth": None, "configurations": ARMS[1:2] + ARMS[-1:]})
    evaluation = evaluate_run(run)
    student = evaluation["configurations"][-1]["scores"]
    assert {"frechet_teacher", "diversity", "coverage_teacher"} <= student.keys()
    assert not any("real" in name or "right" in name for name in student)
    found = summarize(run)["criteria"]
    assert [criterion["name"] for criterion in found] == [
        "minutes",
        "gigabytes",
        "diversity",
        "diversity_ahead",
    ]
    baseline = evaluation["configurations"][0]["scores"]["diversity"]
    wanted = baseline + 2 * student["ahead_diversity_error"]
    assert found[-1]["threshold"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": None}, "evaluate.prompts is not set"),
        ({"scores": ["frechet", "diversty"]}, "did you mean 'diversity'"),
        ({"scores": ["oracle"], "truth": None}, "needs a ground truth"),
        ({"truth": "scene"}, "did you mean 'scenes'"),
        ({"features": "word"}, "did you mean 'world'"),
    ],
)
def test_mistakes_stop_before_anything_is_drawn(make_run, settings, change, message):
    run = make_run(evaluate={**settings, **change})
    with pytest.raises(FewstepError, match=message):
        evaluate_run(run)
    assert not (run / "evaluation.json").exists()


def test_prompts_that_the_truth_cannot_judge_are_named(make_run, settings, tmp_path):
    file = tmp_path / "strange.txt"
    file.write_text("small red circle\na photograph of a lighthouse\n", encoding="utf-8")
    run = make_run(evaluate={**settings, "prompts": str(file)})
    with pytest.raises(FewstepError, match="lighthouse"):
        evaluate_run(run)


def test_lora_arms_are_teacher_and_student_of_one_network(make_run, settings):
    run = make_run("lora", evaluate={**settings, "configurations": ARMS[2:3] + ARMS[-1:]})
    teacher, student = evaluate_run(run)["configurations"]
    assert teacher["scores"] != student["scores"]


def test_the_single_picture_is_the_first_of_the_repeated_ones(run):
    opened = Run.open(run)
    backbone, extractor = opened.load_backbone(), make_extractor(opened.recipe.evaluate)
    found = extractor.read(backbone, backbone.net, Sampler(1, 1.0, *opened.size))
    count, times = REPEATS
    assert found.repeated.shape[:2] == found.shown.shape == (count, times)
    assert torch.equal(found.repeated[:, 0], found.single[:count])
    assert not torch.equal(found.repeated[:, 1], found.single[:count])
    right = [all(flag for _, flag in verdict) for verdict in found.verdicts[:count]]
    assert found.shown[:, 0].tolist() == right
    real = extractor.read_real(7)
    assert real.shown.float().mean() >= 0.9


# --------------------------------------------------------------------------------- measurements
# kept


def measurements():
    generator = torch.Generator().manual_seed(0)
    verdicts = ((("color", True), ("clean", False)), (("color", False), ("clean", True)))
    return configurations.Measurements(
        torch.rand(2, 4, generator=generator),
        torch.rand(1, 2, 4, generator=generator),
        verdicts,
        torch.tensor([[True, False]]),
    )


def test_kept_readings_come_back_whole(tmp_path):
    feature_cache = configurations.FeatureCache((tmp_path / "a", tmp_path / "b"))
    feature_cache.keep("key", measurements())
    found = feature_cache.find("key")
    assert torch.equal(found.single, measurements().single)
    assert torch.equal(found.repeated, measurements().repeated)
    assert found.verdicts == measurements().verdicts
    assert torch.equal(found.shown, measurements().shown)
    assert feature_cache.find("other") is None
    # A folder further back serves as well, such as one that came with the package.
    assert configurations.FeatureCache((tmp_path / "c", tmp_path / "a")).find("key") is not None


def test_torn_readings_are_as_good_as_none(tmp_path):
    feature_cache = configurations.FeatureCache((tmp_path,))
    feature_cache.keep("key", measurements())
    file = tmp_path / "key.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert feature_cache.find("key") is None


# ----------------------------------------------------------------------------------------- truth


def test_the_truth_draws_what_it_judges_right():
    truth, captions = Scenes(), [str(p) for p in distinct_prompts(40, 3, held_out=True)]
    images = truth.draw(captions, seed=0)
    assert torch.equal(images, truth.draw(captions, seed=0))
    assert not torch.equal(images, truth.draw(captions, seed=1))
    verdicts = truth.judge(captions, images)
    assert sum(all(flag for _, flag in verdict) for verdict in verdicts) >= 39
    assert truth.knows(captions[0]) and not truth.knows("a dog")
