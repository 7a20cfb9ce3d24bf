"""A recipe may extend another one, and what is wrong is found in the right file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.config import ConfigError, Recipe, shipped
from refusals import names_in, refuses

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return written


def test_extending_is_overriding(write: Write) -> None:
    text = """
extends: sd3-medium-lora
data: {prompts: [a cat]}
student: {optimizer: {lr: 3.0e-4}, lora: {rank: 8}}
objectives: [{name: dm}]
ema: null
"""
    changes = {
        "data.prompts": ["a cat"],
        "student.optimizer.lr": 3e-4,
        "student.lora.rank": 8,
        "objectives": [{"name": "dm"}],
        "ema": None,
    }
    file = write("mine.yaml", text)
    assert Recipe.from_file(file) == Recipe.named("sd3-medium-lora", changes)
    more = Recipe.from_file(file, ["student.lora.rank=4"])
    assert more == Recipe.named("sd3-medium-lora", {**changes, "student.lora.rank": 4})


def test_files_are_found_beside_the_one_that_extends_them(write: Write) -> None:
    write("sdxl-lora.yaml", shipped.find("demo").read_text(encoding="utf-8"))
    write("base.yaml", "extends: sdxl-lora.yaml\ntrain: {steps: 40, seed: 1}\n")
    file = write("inner/mine.yaml", "extends: ../base.yaml\ntrain: {steps: 60}\n")
    assert Recipe.from_file(file) == Recipe.named("demo", {"train.steps": 60, "train.seed": 1})


def test_a_mapping_of_another_name_is_another_thing(write: Write) -> None:
    grid = "grid: {name: fixed, sigmas: [1, 0.4]}"
    file = write("mine.yaml", f"extends: sd3-medium-lora\n{grid}\n")
    recipe = Recipe.from_file(file)
    assert recipe == Recipe.named("sd3-medium-lora", {"grid": recipe.grid})
    file = write("mine.yaml", "extends: sd3-medium-lora\ngrid: {max_steps: 5}\n")
    assert Recipe.from_file(file) == Recipe.named("sd3-medium-lora", {"grid.max_steps": 5})


@pytest.mark.parametrize("files", [{"a": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_circles_are_refused(write: Write, files: dict[str, str]) -> None:
    for name, base in files.items():
        write(f"{name}.yaml", f"\nextends: {base}.yaml\n")
    file = write("start.yaml", "extends: a.yaml\n")
    with refuses("config", "extends: ", ConfigError) as caught:
        Recipe.from_file(file)
    assert {"line", "2"} <= names_in(caught.value)


@pytest.mark.parametrize("base", ["nowhere.yaml", "sd3-mediu", "[a]", "''", "3", "{}", "."])
def test_what_cannot_be_extended_is_refused(write: Write, base: str) -> None:
    file = write("mine.yaml", f"extends: {base}\n")
    with refuses("config", "extends: ", ConfigError) as caught:
        Recipe.from_file(file)
    assert {str(file), "1"} <= names_in(caught.value)


def test_each_problem_names_its_file_and_line(write: Write) -> None:
    base = write("base.yaml", "extends: demo\ntrain:\n  steps: many\n  seed: 0\ngrid: {low: 2}\n")
    text = "extends: base.yaml\n\nmodle: {}\nobjectives:\n- {name: dm}\n- {nam: ca}\n"
    mine = write("mine.yaml", text)
    with refuses("config", "", ConfigError) as caught:
        Recipe.from_file(mine, ["preview.every=no", "train.seed=-1"])
    where = {
        str(each).partition(":")[0]: names_in(each) & {str(base), str(mine), "3", "6", "5"}
        for each in caught.value.problems
    }
    assert where == {
        "modle": {str(mine), "3"},
        "train.steps": {str(base), "3"},
        "grid.low": {str(base), "5"},
        "objectives.1.name": {str(mine), "6"},
        "preview.every": set(),
        "train.seed": set(),
    }


def test_the_recipes_of_the_guide_can_be_read(write: Write) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guide.md"
    recipes = re.findall(r"```yaml\n# (\S+)\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    read = {name: Recipe.from_file(write(name, text)) for name, text in recipes}
    assert [each.scale for each in read["tonight.yaml"].model.loras] == [0.8, 1.0]
    for name in ("onward.yaml", "eight-to-four.yaml"):
        assert [term.name for term in read[name].objectives] == ["dm", "cdm"]
