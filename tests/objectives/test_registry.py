"""Objectives are found by name, and mistakes name the nearest."""

from __future__ import annotations

import pytest

from fewstep.core.schedules import LogitNormal
from fewstep.objectives import available, build, settings_model
from fewstep.objectives.sites import AtAnchor, FreshNoise
from fewstep.utils.errors import FewstepError
from refusals import names_in


def test_the_published_objectives_are_there():
    assert set(available()) >= {"ca", "ca_embedded", "cdm", "dm", "isg"}


def test_published_settings_are_the_defaults():
    assert build("ca").alpha == 7.0
    assert all(build(name).weight_at(0) == 1.0 for name in available())
    assert all(build(name).floor == 0.1 for name in ("ca", "ca_embedded", "cdm", "dm"))


def test_choices_can_be_replaced_from_a_recipe():
    site = {"name": "fresh_noise", "law": {"name": "logit_normal", "std": 0.5}}
    assert build("cdm", site=site).site == FreshNoise(law=LogitNormal(std=0.5))
    assert build("cdm", site={"name": "anchor"}).site == AtAnchor()


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cmd"},
        {"name": "ca", "alhpa": 3.0},
        {"name": "ca", "alpha": "3"},
        {"name": "ca", "alpha": float("nan")},
        {"name": "dm", "weight": 0.0},
        {"name": "dm", "weight": -1},
        {"name": "dm", "weight": "1"},
        {"name": "dm", "weight": [[10, 1.0], [10, 2.0]]},
        {"name": "dm", "weight": [[0, 1.0, 2.0]]},
        {"name": "dm", "weight": []},
        {"name": "cdm", "site": {"name": "along_velocty"}},
        {"name": "cdm", "probe": {"name": "uniform", "hihg": 0.5}},
        {"name": "ca_embedded", "low": 8.0},
        {"name": "ca_embedded", "low": -1.0},
        {"name": "ca", "high": 8.0},
        {"name": "dm", "teacher_guidance": {"low": 9}},
        {"name": "dm", "teacher_guidance": {"hihg": 9}},
        {"name": "dm", "teacher_guidance": 3.5},
        {"name": "isg", "site": {"name": "along_velocity"}},
        {"name": "isg", "distance": {"name": "l1"}},
        {"name": "isg", "distance": {"name": "charbonnier", "eps": 0.0}},
        {"name": "isg", "floor": 0.1},
    ],
)
def test_mistakes_are_refused_in_one_line(settings):
    with pytest.raises(FewstepError) as caught:
        build(**settings)
    assert caught.value.code in ("config", "unknown-name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [
        ({"name": "cmd"}, "cdm"),
        ({"name": "ca", "alhpa": 3.0}, "alpha"),
        ({"name": "cdm", "site": {"name": "along_velocty"}}, "along_velocity"),
        ({"name": "dm", "teacher_guidance": {"hihg": 9}}, "high"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(settings, nearest):
    with pytest.raises(FewstepError) as caught:
        build(**settings)
    assert nearest in names_in(caught.value)


def test_an_objective_is_its_own_settings():
    model = settings_model("ca")
    objective = build("ca", alpha=3.0, weight=0.5)
    assert isinstance(objective, model)
    assert build(**objective.model_dump(mode="json")) == objective
