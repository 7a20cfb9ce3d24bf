"""A recipe says exactly what will run, and a wrong one says in one line where."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fewstep.config import ConfigError, LoraRecipe, Recipe, missing_files
from fewstep.core.schedules import FixedGrid, RandomGrid, Uniform, UpToAnchor
from fewstep.utils import yaml
from refusals import names_in, refuses

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
    recipe = Recipe.from_file(recipe_file)
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
    recipe = Recipe.from_file(
        recipe_file, [*overrides, "student.lora.rank=4", "preview.prompts=['1e5']"]
    )
    recipe_file.write_text(recipe.to_yaml())
    assert Recipe.from_file(recipe_file) == recipe


def test_overrides_reach_every_depth(recipe_file: Path) -> None:
    recipe = Recipe.from_file(
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
    ("override", "place"),
    [
        ("trian.steps=4", "trian: unknown key; did you mean 'train'?"),
        ("train.stepss=3", "train.stepss: unknown key; did you mean 'steps'?"),
        ("student.optimizer.lrr=3", "student.optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("preview.teacher.guidence=3", "preview.teacher.guidence: unknown key"),
        ("grid.max_step=3", "grid.max_step: unknown key; did you mean 'max_steps'?"),
        ("fake_teacher.law.lo=0.1", "fake_teacher.law.lo: unknown key; did you mean 'low'?"),
        ("grid.name=randm", "grid.name: unknown 'randm'; did you mean 'random'?"),
        ("student.optimizer.name=adam", "student.optimizer.name: "),
        ("student.optimizer.lr=fast", "student.optimizer.lr: "),
        ("student.gradient_checkpointing=often", "student.gradient_checkpointing: "),
        ("data.batch_size=3.5", "data.batch_size: "),
        ("data.batch_size=true", "data.batch_size: "),
        ("data.prompts=3", "data.prompts: "),
        ("data.prompts=[]", "data.prompts: "),
        ("data.prompts=[a cat, 3]", "data.prompts.1: "),
        ("preview.steps=[4, 0]", "preview.steps.1: "),
        ("resolution={height: 64}", "resolution.width: "),
        ("grid.shift=0", "grid.shift: "),
        ("fake_teacher.target=end", "fake_teacher.target.end: "),
        ("fake_teacher.target={x0: 0}", "fake_teacher.target.x0: "),
        ("fake_teacher.target=3", "fake_teacher.target: "),
        ("fake_teacher.target={}", "fake_teacher.target: "),
        ("student.lora.rank=8", "student: "),
        ("data.accumulate=9", "data: "),
        ("train.cooldown=1.5", "train.cooldown: "),
        ("train.steps=1", "train.steps (1) "),
        ("objectives=[{name: dm}, {name: dm}]", "objectives "),
        ("objectives=[]", "objectives: "),
        ("objectives.5.alpha=3", "override 'objectives.5.alpha': "),
        ("train.steps", "override 'train.steps': "),
        ("train.steps=[", "override 'train.steps=[': "),
        ("train.steps.x=1", "override 'train.steps.x': "),
        (".steps=1", "override '.steps': "),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_begins_with_the_place(
    recipe_file: Path, override: str, place: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_file(recipe_file, [override])
    assert str(caught.value).startswith(place)
    assert "\n" not in str(caught.value)
    assert caught.value.code == "config"


@pytest.mark.parametrize("text", ["- a list", "a: [", "a: 1\na: 2", ""])
def test_files_that_are_no_recipes_are_named(tmp_path: Path, text: str) -> None:
    for file in (tmp_path / "r.yaml", tmp_path / "missing.yaml"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            Recipe.from_file(file)
        assert str(caught.value).startswith(f"{file}: ")


def test_overrides_may_be_values_of_python(recipe_file: Path) -> None:
    prompts = ["a red circle", "yes"]
    recipe = Recipe.from_file(
        recipe_file,
        {
            "data.prompts": prompts,
            "train.steps": 500,
            "grid": FixedGrid(shift=1.5),
            "preview.steps": (1, 4),
            "model.path": Path("some/where"),
            "student.lora": LoraRecipe(rank=4),
            "student.mode": "lora",
        },
    )
    assert recipe.data.prompts == tuple(prompts)
    assert recipe.grid == FixedGrid(shift=1.5) and recipe.model.path == "some/where"
    assert recipe.student.lora == LoraRecipe(rank=4) and recipe.preview.steps == (1, 4)
    assert Recipe.from_values(yaml.load(recipe.to_yaml())) == recipe
    with pytest.raises(ConfigError):
        Recipe.from_file(recipe_file, {"train.steps": "500"})
    with pytest.raises(ConfigError):
        Recipe.from_file(recipe_file, {"train.steps": object()})


def test_recipes_are_found_by_name_or_path(recipe_file: Path) -> None:
    shipped = Recipe.named("sd3-medium-lora", {"data.prompts": ["a cat"]})
    assert shipped.data.prompts == ("a cat",) and shipped.student.mode == "lora"
    assert Recipe.named(recipe_file) == Recipe.from_file(recipe_file)
    with refuses("missing-file", "sd3-medium-lore: ") as caught:
        Recipe.named("sd3-medium-lore")
    assert "sd3-medium-lora" in names_in(caught.value)


def test_prompt_files_that_are_not_there_are_listed(recipe_file: Path) -> None:
    changes = {"preview.prompts": "/not/there.txt", "evaluate.prompts": ["a cat"]}
    recipe = Recipe.from_file(recipe_file, changes)
    assert missing_files(recipe) == {"preview.prompts": "/not/there.txt"}
    recipe = Recipe.from_file(recipe_file, {"data.prompts": "nowhere/prompts.txt"})
    assert missing_files(recipe) == {"data.prompts": "nowhere/prompts.txt"}
    assert missing_files(Recipe.from_file(recipe_file, {"data.prompts": "owner/name"})) == {}


def test_yaml_reads_numbers_and_words_as_people_do() -> None:
    assert yaml.load("[1e-5, on, no, yes, 2024-01-01, 1:30, 1_000, ~, TRUE, 1e3, .inf, <<]") == [
        1e-5, "on", "no", "yes", "2024-01-01", "1:30", "1_000", None, True, 1000.0, math.inf, "<<",
    ]  # fmt: skip
    assert yaml.load("[012, -012, 0o14, 0x10, 08, 0b1, +5]") == [12, -12, 12, 16, 8, "0b1", 5]
    texts = ("1e-5", "on", "", "true", "~", "012", "0o14", "0x10", "1_000", "1:30", "-", "# a")
    values = dict(enumerate(texts)) | {"number": 1e-5, "none": None, "ten": 10}
    assert yaml.load(yaml.dump(values)) == values


def test_a_target_is_a_name_or_odds(recipe_file: Path) -> None:
    for text, odds in (("final", {"final": 1.0}), ("{x0: 1, final: 2}", {"x0": 1.0, "final": 2.0})):
        recipe = Recipe.from_file(recipe_file, [f"fake_teacher.target={text}"])
        assert recipe.fake_teacher.target == odds
    assert Recipe.from_file(recipe_file).fake_teacher.target == {"x0": 1.0}


def test_a_recipe_is_frozen(recipe_file: Path) -> None:
    recipe = Recipe.from_file(recipe_file)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError):
        recipe.train.steps = 3  # type: ignore[misc]


def test_all_that_is_wrong_is_told_at_once(recipe_file: Path) -> None:
    wrong = {
        "train.stepss=3": "train.stepss: ",
        "data.batch_size=many": "data.batch_size: ",
        "student.gradient_checkpointing=often": "student.gradient_checkpointing: ",
        "evaluate.arms=3": "evaluate.arms: ",
        "objectives.7.alpha=3": "override 'objectives.7.alpha': ",
        "train.seed=[": "override 'train.seed=[': ",
        'model.path="a\\0b"': "model.path: ",
    }
    with refuses("config", f"{len(wrong)} problems: ", ConfigError) as caught:
        Recipe.from_file(recipe_file, list(wrong))
    problems = [str(each) for each in caught.value.problems]
    assert len(problems) == len(wrong)
    for place in wrong.values():
        assert [each for each in problems if each.startswith(place)], place


def test_a_text_that_would_take_all_memory_is_no_yaml() -> None:
    shared = yaml.load("a: &x {b: 1}\nc: [*x, *x]")
    assert shared == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}
    bomb = "a0: &a0 x\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    for text in (bomb, "a: &a [*a]", "[" * 5000, "{a: " * 5000, "- " * 5000):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text)


def test_tags_make_no_objects() -> None:
    for text in ("!!python/name:os.system", "!!python/object/apply:os.getcwd []", "!!int zebra"):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text)
