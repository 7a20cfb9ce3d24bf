"""A recipe says exactly what will run, and a wrong one says in one line where."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.config import ConfigError, Recipe, dump_recipe, load_recipe
from fewstep.core.schedules import RandomGrid, Uniform, UpToAnchor
from fewstep.utils import yaml

MINIMAL = """
model: {path: somewhere/model}
data: {prompts: PROMPTS, batch_size: 4}
resolution: {height: 64, width: 64}
objectives:
- {name: ca, alpha: 7}
- name: dm
train: {steps: 10}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(MINIMAL.replace("PROMPTS", str(prompts)))
    return file


def test_defaults_are_the_published_settings(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    student, fake = recipe.student.optimizer, recipe.fake_teacher.optimizer
    assert (student.lr, fake.lr) == (1e-5, 5e-6)
    assert student.betas == fake.betas == (0.9, 0.999)
    assert student.weight_decay == fake.weight_decay == 1e-4
    assert student.eps == fake.eps == 1e-8
    assert student.clip == fake.clip == 1.0
    assert (recipe.student.every, recipe.train.warmup) == (2, 100)
    assert (recipe.fake_teacher.updates, recipe.fake_teacher.ida_rate) == (1, 0.001)
    assert recipe.grid == RandomGrid(max_steps=28, low=0.25, high=0.95)
    assert recipe.fake_teacher.law == Uniform()
    assert recipe.ema is not None and recipe.ema.max_decay == 0.999


def test_dump_and_load_are_inverse(recipe_file: Path) -> None:
    overrides = ["grid={name: fixed, sigmas: [1, 0.5]}", "student.mode=lora", "ema=null"]
    recipe = load_recipe(
        recipe_file, [*overrides, "student.lora.rank=4", "preview.prompts=['1e5']"]
    )
    recipe_file.write_text(dump_recipe(recipe))
    assert load_recipe(recipe_file) == recipe


def test_overrides_reach_every_depth(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "objectives.0.alpha=3",
            "student.optimizer.lr=1e-4",
            "grid.max_steps=12",
            "fake_teacher.law={name: up_to_anchor}",
            "preview.steps=[1, 4]",
        ],
    )
    assert recipe.objectives[0].settings == {"alpha": 3}
    assert recipe.student.optimizer.lr == 1e-4
    assert recipe.student.optimizer.weight_decay == 1e-4
    assert recipe.grid == RandomGrid(max_steps=12)
    assert recipe.fake_teacher.law == UpToAnchor()
    assert recipe.preview.steps == (1, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=4", "trian: unknown key; did you mean 'train'?"),
        ("train.stepss=3", "train.stepss: unknown key; did you mean 'steps'?"),
        ("student.optimizer.lrr=3", "student.optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("preview.teacher.guidence=3", "preview.teacher.guidence: unknown key"),
        ("grid.max_step=3", "grid.max_step: unknown key; did you mean 'max_steps'?"),
        ("fake_teacher.law.lo=0.1", "fake_teacher.law.lo: unknown key; did you mean 'low'?"),
        ("grid.name=randm", "grid.name: unknown 'randm'; did you mean 'random'?"),
        ("student.optimizer.name=adam", "student.optimizer.name: must be 'adamw'"),
        ("student.optimizer.lr=fast", "student.optimizer.lr: Input should be a valid number"),
        ("data.batch_size=3.5", "data.batch_size: Input should be a valid integer"),
        ("data.batch_size=true", "data.batch_size: Input should be a valid integer"),
        ("preview.steps=[4, 0]", "preview.steps.1: Input should be greater"),
        ("resolution={height: 64}", "resolution.width: required, but missing"),
        ("fake_teacher.target=end", "fake_teacher.target.end: must be 'x0' or 'final', not 'end'"),
        ("fake_teacher.target={x0: 0}", "fake_teacher.target.x0: Input should be greater"),
        ("fake_teacher.target=3", "fake_teacher.target: must be a name, or odds such as {x0: 1, f"),
        ("fake_teacher.target={}", "fake_teacher.target: must be a name, or odds such as"),
        ("student.lora.rank=8", "student: lora is given but mode is 'full'"),
        ("data.accumulate=9", "data: accumulate (9) must not exceed batch_size (4)"),
        ("train.cooldown=1.5", "train.cooldown: Input should be less"),
        ("train.steps=1", "train.steps (1) is below student.every (2)"),
        ("objectives=[{name: dm}, {name: dm}]", "objectives lists 'dm' twice"),
        ("objectives=[]", "objectives: "),
        ("objectives.5.alpha=3", "must be a number below 2"),
        ("data.prompts=/not/there.txt", "data.prompts: there is no file /not/there.txt"),
        ("train.steps", "write it as section.key=value"),
        ("train.steps=[", "not valid YAML"),
        ("train.steps.x=1", "there is nothing to set at 'x'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "a: [", "a: 1\na: 2", ""])
def test_files_that_are_no_recipes(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.yaml: "):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_recipe(tmp_path / "missing.yaml")


def test_yaml_reads_numbers_and_words_as_people_do() -> None:
    assert yaml.load("[1e-5, on, no, 0x10, 2024-01-01]") == [
        1e-5, "on", "no", "0x10", "2024-01-01",
    ]  # fmt: skip
    values = {"a": 1e-5, "b": "1e-5", "c": "on", "d": None, "e": "", "f": "true", "g": "~"}
    assert yaml.load(yaml.dump(values)) == values


def test_a_target_is_a_name_or_odds(recipe_file: Path) -> None:
    for text, odds in (("final", {"final": 1.0}), ("{x0: 1, final: 2}", {"x0": 1.0, "final": 2.0})):
        recipe = load_recipe(recipe_file, [f"fake_teacher.target={text}"])
        assert recipe.fake_teacher.target == odds
    assert load_recipe(recipe_file).fake_teacher.target == {"x0": 1.0}


def test_a_recipe_is_frozen(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 3
