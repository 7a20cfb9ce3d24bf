"""Whatever a recipe holds comes back from its file, and whatever is no recipe is one line."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.config import ConfigError, Recipe
from fewstep.utils import yaml

MINIMAL: dict[str, Any] = {
    "model": {"path": "somewhere/model"},
    "data": {"prompts": ["a cat"], "batch_size": 8},
    "resolution": {"height": 64, "width": 64},
    "objectives": [{"name": "dm"}],
    "train": {"steps": 10_000},
}
TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=20)
"""Any text but control characters, which recipes refuse."""
NAME = TEXT.filter(bool)
COUNT = st.integers(1, 1000)
RATE = st.floats(1e-12, 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SOUND = {
    "model.path": NAME,
    "model.options": st.dictionaries(TEXT.filter(bool), PLAIN, max_size=3),
    "data.prompts": st.lists(TEXT, min_size=1, max_size=4) | NAME,
    "data.accumulate": st.integers(1, 8),
    "data.cache_gb": st.floats(0, 1e6),
    "objectives": st.lists(
        st.fixed_dictionaries({"name": NAME}, optional={"alpha": PLAIN, "weight": PLAIN}),
        min_size=1,
        max_size=3,
        unique_by=lambda each: each["name"],
    ),
    "grid": st.fixed_dictionaries({"name": st.just("random"), "max_steps": COUNT})
    | st.fixed_dictionaries({"name": st.just("fixed"), "shift": st.none() | st.floats(1e-3, 1e3)}),
    "fake_teacher.target": st.sampled_from(["x0", "final"])
    | st.dictionaries(st.sampled_from(["x0", "final"]), st.floats(1e-12, 1e6), min_size=1),
    "student.optimizer.lr": RATE,
    "student.optimizer.betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    "student.gradient_checkpointing": st.booleans() | COUNT,
    "train.seed": st.integers(0, 2**63 - 1),
    "ema": st.none() | st.just({"max_decay": 0.5}),
    "card": st.dictionaries(TEXT, TEXT, max_size=4),
    "log.sinks": st.lists(NAME, max_size=3, unique=True),
    "preview.steps": st.lists(COUNT, min_size=1, max_size=4),
}


@given(st.fixed_dictionaries({}, optional=SOUND))
def test_a_recipe_comes_back_from_its_file(changes):
    recipe = Recipe.from_values(MINIMAL, changes)
    assert Recipe.from_values(yaml.load(recipe.to_yaml())) == recipe
    assert Recipe.from_saved(recipe.model_dump(mode="json")) == recipe


@given(PLAIN)
def test_yaml_gives_plain_values_back(value):
    assert yaml.load(yaml.dump(value)) == value


@settings(max_examples=100)
@given(st.sampled_from(sorted(SOUND)), PLAIN | st.text() | st.binary())
def test_any_other_value_is_a_recipe_or_one_line(key, value):
    before = copy.deepcopy(MINIMAL)
    try:
        recipe = Recipe.from_values(MINIMAL, {key: value})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Recipe.from_values(yaml.load(recipe.to_yaml())) == recipe
    assert before == MINIMAL


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_yaml_or_one_kind_of_error(text):
    try:
        yaml.load(text)
    except yaml.YAMLError:
        return
