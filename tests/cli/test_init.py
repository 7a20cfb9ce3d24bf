"""`fewstep init` writes a recipe that fits what is there, and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep import cli, models
from fewstep.config import Recipe
from fewstep.planning import plan
from fewstep.planning.estimate import Estimate
from fewstep.planning.fitting import fit
from fewstep.planning.gpus import GPUS
from fewstep.utils.resources import resolve

TINY = "package://fewstep.toyworld/data/pipeline"


def wrote(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Recipe, dict]:
    """The recipe that a command wrote, and what it said to programs."""
    capsys.readouterr()
    assert cli.run(["init", *arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    return Recipe.from_file(said["file"]), said


def test_it_writes_a_recipe_with_reasons_and_overwrites_nothing(capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    folder, file = resolve(TINY), tmp_path / "new" / "mine #1.yaml"
    words = ["--model", str(folder), "--prompts", str(prompts), "--to", str(file)]
    recipe, said = wrote(words, capsys)
    assert recipe == Recipe.named(said["extends"], said["settings"])
    assert recipe.model.path == str(folder) and recipe.data.prompts == str(prompts)
    assert recipe.student.mode == "lora" and (
        recipe.resolution.height,
        recipe.resolution.width,
    ) == (64, 64)
    text = file.read_text(encoding="utf-8")
    assert said["reasons"] and all(
        len(line) <= 120 for line in text.splitlines() if str(tmp_path) not in line
    )
    keys = [line for line in text.splitlines() if line.startswith("  ")]
    assert keys and all(" # " in line for line in keys), "every setting has a comment"
    assert cli.run(["init", *words]) == 2
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_the_recipe_runs(capsys, tmp_path):
    _, said = wrote(["--model", TINY, "--to", str(tmp_path / "r.yaml")], capsys)
    words = ["distill", said["file"], "--dry-run", "--json"]
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {}


@pytest.mark.slow
def test_the_mode_can_be_chosen(capsys, tmp_path):
    for mode in ("full", "lora"):
        words = ["--model", TINY, "--mode", mode, "--to", str(tmp_path / f"{mode}.yaml")]
        recipe, _ = wrote(words, capsys)
        assert recipe.student.mode == mode
        assert recipe.student.optimizer.lr == (1e-5 if mode == "full" else 1e-4)


@pytest.fixture(scope="module")
def estimate() -> Estimate:
    changes = {"model.path": TINY, "resolution.height": 64, "resolution.width": 64}
    changes |= {"model.options": {"t5": False}, "model.dtype": "float32", "data.batch_size": 4}
    changes["data.accumulate"] = 1
    return Estimate.load(Recipe.named("sd3-medium", changes))


def test_it_fits_and_uses_the_room(estimate):
    most = fit(estimate, 10**12)
    assert most.choices[0].value == 1, "all samples at a time"
    at_once, bytes_ = 4, most.bytes
    for share in (0.9, 0.5, 0.2):
        room = round(most.bytes * share)
        found = fit(estimate, room)
        assert found.fits == (found.bytes <= room)
        settings = {choice.key: choice.value for choice in found.choices}
        samples = 4 // settings["data.accumulate"]
        assert samples <= at_once and found.bytes <= bytes_
        at_once, bytes_ = samples, found.bytes
    assert not fit(estimate, 1000).fits


@pytest.mark.slow
def test_what_fits_in_no_way_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(GPUS, "t4-16", GPUS["t4-16"].__class__("t4-16", 1e-3, 1.0))
    words = ["init", "--model", TINY, "--gpu", "t4-16", "--to", str(tmp_path / "r.yaml"), "--json"]
    assert cli.run(words) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "out-of-memory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "repo", sorted({each.repo for family in models.available() for each in family.models})
)
def test_every_published_model_gets_a_recipe_that_fits(repo, capsys, tmp_path: Path):
    words = ["--model", repo, "--gpu", "h200-141", "--to", str(tmp_path / "r.yaml")]
    recipe, said = wrote(words, capsys)
    found = plan(recipe, "h200-141")
    assert found.fits and found.peak_bytes == said["peak_bytes"]
