"""Recipes of older versions: people are told what to write, saved ones are read."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fewstep.config import ConfigError, Recipe
from fewstep.config.migrate import OLD_KEYS

RECIPE: dict[str, Any] = {
    "model": {"path": "some/where"},
    "data": {"prompts": "prompts.txt", "batch_size": 4},
    "resolution": {"height": 64, "width": 64},
    "objectives": [{"name": "dm"}],
    "train": {"steps": 10},
}


def with_values(**values: Any) -> dict[str, Any]:
    data = copy.deepcopy(RECIPE)
    for key, value in values.items():
        section, _, name = key.partition("__")
        data.setdefault(section, {})[name] = value
    return data


SAVED = [
    (with_values(fake_teacher__pull=0.03), with_values(fake_teacher__ida_rate=0.03)),
    (
        with_values(grid__name="random", grid__shift_scale=1.0, grid__max_steps=3),
        with_values(grid__name="random", grid__max_steps=3),
    ),
    (
        with_values(evaluate__arms=[{"model": "student", "steps": 2, "shift_scale": None}]),
        with_values(evaluate__configurations=[{"model": "student", "steps": 2}]),
    ),
    (
        with_values(preview__path="a.txt", preview__prompts=None, preview__rows=3, preview__seed=0),
        with_values(preview__prompts="a.txt"),
    ),
    (
        with_values(preview__path=None, preview__prompts=["a cat"]),
        with_values(preview__prompts=["a cat"]),
    ),
    (
        with_values(model__path="package://fewstep.world/data/pipeline"),
        with_values(model__path="package://fewstep.toyworld/data/pipeline"),
    ),
]


@pytest.mark.parametrize(("saved", "today"), SAVED)
def test_saved_recipes_are_read_where_their_meaning_is_unchanged(
    saved: dict[str, Any], today: dict[str, Any]
) -> None:
    before = copy.deepcopy(saved)
    assert Recipe.from_saved(saved) == Recipe.from_values(today)
    assert saved == before


@pytest.mark.parametrize("saved", [saved for saved, _ in SAVED[:-1]])
def test_people_are_told_what_an_old_key_has_become(saved: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_values(saved)
    for problem in map(str, caught.value.problems):
        old = next(old for old in OLD_KEYS if problem.startswith(old.key))
        assert problem.partition(old.instead)[1], "what is to be written instead"


def test_an_old_key_is_told_from_an_override() -> None:
    for override in ("fake_teacher.pull=0.1", "evaluate.arms.0.steps=3", "grid.shift_scale=0.4"):
        with pytest.raises(ConfigError) as caught:
            Recipe.from_values(RECIPE, [override])
        assert str(caught.value).startswith(override.partition("=")[0].partition(".0")[0])


@pytest.mark.parametrize(
    "saved",
    [
        with_values(grid__name="fixed", grid__shift_scale=0.42),
        with_values(preview__seed=3),
        with_values(
            evaluate__arms=[{"model": "teacher"}, {"model": "teacher", "shift_scale": 0.4}]
        ),
    ],
)
def test_a_saved_recipe_whose_meaning_is_gone_is_refused(saved: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Recipe.from_saved(saved)


def test_no_old_key_is_a_key_of_today() -> None:
    today = Recipe.from_values(RECIPE).model_dump(mode="json")
    for old in OLD_KEYS:
        section, name = old.key.split(".")[0], old.key.split(".")[-1]
        if "*" not in old.key:
            assert name not in today[section]
