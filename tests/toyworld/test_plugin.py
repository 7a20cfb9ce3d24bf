"""What the tiny world adds to the open ends: its metric, real scenes, feature space, ratings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.evaluation import evaluate_run, features, references
from fewstep.evaluation.metrics.base import FEATURES, Measurements, References, Values
from fewstep.evaluation.metrics.diversity import pairwise_distance
from fewstep.toyworld.checks import checks
from fewstep.toyworld.plugin import ATTRIBUTES, Accuracy, energy_distance
from fewstep.train.monitor.preview_scores import preview_score
from fewstep.utils.errors import FewstepError
from toyworld_training.prompts import distinct_prompts

SRC = Path(__file__).resolve().parents[2] / "src"
CAPTIONS = [str(prompt) for prompt in distinct_prompts(48, 1, held_out=True)]


def scenes(seed, captions=CAPTIONS):
    return torch.cat(list(references.load("scenes").draw(captions, seed, (64, 64))))


def cloud(count, seed=0, size=4):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------- the wall


def test_the_product_does_without_the_tiny_world():
    """Every module outside it can be imported while it cannot."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['fewstep.toyworld'] = None\n"
        "import fewstep\n"
        "names = [m.name for m in pkgutil.walk_packages(fewstep.__path__, 'fewstep.',\n"
        "    onerror=lambda name: None)]\n"
        "wanted = [n for n in names if '.toyworld' not in n and n != 'fewstep.__main__']\n"
        "failed = []\n"
        "for name in wanted:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: failed.append(f'{name}: {error!r}')\n"
        "print(len(wanted), *failed, sep='\\n')\n"
    )
    env = {"PYTHONPATH": str(SRC), "PATH": "", "HOME": ""}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    count, *failed = run.stdout.splitlines()
    assert int(count) > 50 and failed == []


def test_only_recipes_mention_the_tiny_world():
    """`resources` knows its former name, which older run folders hold."""
    allowed = ("toyworld", "recipes", "resources.py")
    files = [path for path in (SRC / "fewstep").rglob("*") if path.suffix in (".py", ".j2", ".css")]
    outside = [path for path in files if not any(part in allowed for part in path.parts)]
    assert [str(path) for path in outside if "toyworld" in path.read_text(encoding="utf-8")] == []


# ------------------------------------------------------------------------------- real scenes


def test_real_scenes_are_drawn_anew_by_the_seed_and_are_right():
    images = scenes(0)
    assert torch.equal(images, scenes(0)) and not torch.equal(images, scenes(1))
    counts = Accuracy().measure(CAPTIONS, images)
    assert (counts[..., 0] == counts[..., 1]).all(-1).double().mean() > 0.97


def test_prompts_outside_the_grammar_are_refused():
    with pytest.raises(FewstepError):
        scenes(0, ["a photograph of a lighthouse"])
    with pytest.raises(FewstepError):
        Accuracy().prepare(["small red circle", "a photograph of a lighthouse"])


# --------------------------------------------------------------------------------- accuracy


def measured(flags, repeated_flags=None, features=None):
    """Measurements of pictures whose only attribute asked for is `clean`, right where flagged."""

    def counts(given):
        asked = torch.zeros(*given.shape, len(ATTRIBUTES), 2, dtype=torch.uint8)
        asked[..., ATTRIBUTES.index("clean"), 0] = 1
        asked[..., ATTRIBUTES.index("clean"), 1] = given.to(torch.uint8)
        return asked

    again = torch.ones(len(flags), 2) if repeated_flags is None else repeated_flags
    points = cloud(again.numel()).reshape(*again.shape, 4) if features is None else features
    return Measurements(
        {
            "accuracy": Values(counts(flags), counts(again)),
            FEATURES: Values(points[:, 0], points),
        }
    )


def test_a_picture_is_accurate_when_all_that_is_asked_for_is_right():
    prompts = ["red circle left on gray", "red circle and blue square", "small green cross"]
    images = scenes(3, prompts)
    images[1] = scenes(4, ["red circle and green square"])[0]
    counts = Accuracy().measure(prompts, images)
    figures = Accuracy()(
        Measurements(
            {
                "accuracy": Values(counts, counts[:, None].repeat(1, 2, 1, 1)),
                FEATURES: Values(cloud(3), cloud(6).reshape(3, 2, 4)),
            }
        ),
        References(),
    )
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["accuracy_color"] == pytest.approx(3 / 4)
    assert figures["accuracy_shape"] == figures["accuracy_size"] == 1
    assert figures["accuracy_error"] > 0


def test_a_student_leads_by_the_difference_of_the_figures():
    student, baseline = (
        measured(torch.tensor([bit == "1" for bit in bits])) for bits in ("1101", "1000")
    )
    figures = Accuracy()(student, References(baseline=baseline))
    assert figures["lead_accuracy"] == pytest.approx(0.5)
    assert figures["lead_accuracy_error"] > 0


def test_wrong_pictures_do_not_pass_for_diversity():
    features = cloud(6 * 4).reshape(6, 4, 4)
    right = torch.ones(6, 4, dtype=torch.bool)
    right[:, 3] = False
    ghostly = features.clone()
    ghostly[:, 3] += 100
    flags = torch.ones(6)
    clean, ghosts = (
        Accuracy()(measured(flags, right, each), References()) for each in (features, ghostly)
    )
    assert ghosts["diversity_right"] == clean["diversity_right"]
    three = float(pairwise_distance(features[:, :3]).mean())
    assert clean["diversity_right"] == pytest.approx(three)


def test_prompts_without_two_right_pictures_are_left_out_of_their_diversity():
    features = cloud(5 * 3).reshape(5, 3, 4)
    ours = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    theirs = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]])
    student, baseline = (
        measured(torch.ones(5), ours, features),
        measured(torch.ones(5), theirs, 2 * features),
    )
    figures = Accuracy()(student, References(baseline=baseline))
    each = pairwise_distance(features, ours.bool())
    assert each.isnan().tolist() == [False, False, True, False, False]
    assert figures["diversity_right"] == pytest.approx(float(each[[0, 1, 3, 4]].mean()))
    lead = (each - pairwise_distance(2 * features, theirs.bool()))[[0, 3, 4]].mean()
    assert figures["lead_diversity_right"] == pytest.approx(float(lead))
    nothing = measured(torch.ones(5), torch.zeros(5, 3), features)
    assert "diversity_right" not in Accuracy()(nothing, References(baseline=baseline))


def test_a_run_of_the_tiny_world_is_judged_beside_real_scenes(make_run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS[:12]) + "\n")
    settings = {"prompts": str(prompts), "repeats": [3, 2], "gallery": 1, "references": "scenes"}
    settings |= {"features": "world", "metrics": ["accuracy", "frechet"]}
    configurations = [{"model": "student", "steps": 4}]
    evaluation = evaluate_run(make_run(evaluate={**settings, "configurations": configurations}))
    (student,) = evaluation["configurations"]
    real = evaluation["real"]["figures"]
    assert {"accuracy", "accuracy_color", "frechet_real"} <= student["figures"].keys()
    assert real["accuracy"] >= 0.9  # real scenes are right
    assert real["frechet_real"] < student["figures"]["frechet_real"]
    assert evaluation["columns"]["accuracy_color"]["group"]


# --------------------------------------------------------------------- features and ratings


def test_saturation_moves_features_less_than_another_scene():
    images = scenes(0, ["small red circle left on gray", "large blue square right"] * 8)
    space = features.load("world")
    plain, loud = space(images), space((images - 0.5) * 1.3 + 0.5)
    assert plain.abs().max() <= 1
    other = (plain[0::2] - plain[1::2]).norm(dim=1).mean()
    assert (plain - loud).norm(dim=1).mean() < 0.5 * other


@pytest.mark.parametrize("name", ["accuracy", "accuracy_and_closeness"])
def test_ratings_prefer_real_pictures_to_blurred_ones(name):
    good, reference = scenes(0), scenes(1)
    blurred = torch.nn.functional.avg_pool2d(good, 31, stride=1, padding=15)
    score = preview_score(name)
    assert score(good, CAPTIONS, reference) > score(blurred, CAPTIONS, reference) + 0.1


def test_energy_distance_is_about_nothing_for_one_law_and_unbiased():
    values = [energy_distance(cloud(32, 2 * i), cloud(32, 2 * i + 1)) for i in range(200)]
    assert abs(sum(values) / len(values)) < 0.01


def test_energy_distance_sees_shifts_and_collapse():
    a, b = cloud(64, 1), cloud(64, 2)
    near, far = energy_distance(a + 0.5, b), energy_distance(a + 2, b)
    assert 0 < near < far
    assert energy_distance(b.mean(0).repeat(64, 1), b) > 0.1


def test_the_demo_is_checked_for_what_ships_with_it():
    found = {check.name: check.status for check in checks()}
    assert found["tiny world"] == found["prompts"] == "ok"
