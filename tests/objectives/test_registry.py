"""Objectives are found by name, and mistakes name the nearest."""

from __future__ import annotations

import pytest

from fewstep.core.schedules import LogitNormal
from fewstep.objectives import Pull, available, build, settings_model
from fewstep.objectives.sites import AtAnchor, FreshNoise
from fewstep.utils.errors import FewstepError


def test_the_published_objectives_are_there():
    assert available() == ["ca", "ca_embedded", "cdm", "dm", "isg"]


def test_published_settings_are_the_defaults():
    assert build("ca").alpha == 7.0
    assert all(build(name).weight_at(0) == 1.0 for name in available())
    pulls = [each for each in map(build, available()) if isinstance(each, Pull)]
    assert [each.name for each in pulls] == ["ca", "ca_embedded", "cdm", "dm"]
    assert all(each.floor == 0.1 for each in pulls)


def test_choices_can_be_replaced_from_a_recipe():
    site = {"name": "fresh_noise", "law": {"name": "logit_normal", "std": 0.5}}
    assert build("cdm", site=site).site == FreshNoise(law=LogitNormal(std=0.5))
    assert build("cdm", site={"name": "anchor"}).site == AtAnchor()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "cmd"}, "unknown objective 'cmd': did you mean 'cdm'?"),
        ({"name": "ca", "alhpa": 3.0}, "did you mean 'alpha'?"),
        ({"name": "ca", "alpha": "3"}, "alpha"),
        ({"name": "ca", "alpha": float("nan")}, "alpha"),
        ({"name": "dm", "weight": 0.0}, "weight"),
        ({"name": "dm", "weight": -1}, "weight.0.1"),
        ({"name": "dm", "weight": "1"}, "weight: must be a number or a list of [step, weight]"),
        ({"name": "dm", "weight": [[10, 1.0], [10, 2.0]]}, "weight: the steps"),
        ({"name": "dm", "weight": [[0, 1.0, 2.0]]}, "weight.0"),
        ({"name": "dm", "weight": []}, "weight"),
        ({"name": "cdm", "site": {"name": "along_velocty"}}, "did you mean 'along_velocity'?"),
        ({"name": "cdm", "probe": {"name": "uniform", "hihg": 0.5}}, "did you mean 'high'?"),
        ({"name": "ca_embedded", "low": 8.0}, "low (8.0) must be below high (8.0)"),
        ({"name": "ca_embedded", "low": -1.0}, "low"),
        ({"name": "ca", "high": 8.0}, "high"),
        ({"name": "dm", "teacher_guidance": {"low": 9}}, "low (9.0) must be below high (8.0)"),
        ({"name": "dm", "teacher_guidance": {"hihg": 9}}, "did you mean 'high'?"),
        ({"name": "dm", "teacher_guidance": 3.5}, "teacher_guidance"),
        ({"name": "isg", "site": {"name": "along_velocity"}}, "site"),
        ({"name": "isg", "distance": {"name": "l1"}}, "did you mean 'l2'?"),
        ({"name": "isg", "distance": {"name": "charbonnier", "eps": 0.0}}, "eps"),
        ({"name": "isg", "floor": 0.1}, "floor"),
    ],
)
def test_mistakes_are_one_line_that_says_where(settings, message):
    with pytest.raises(FewstepError) as caught:
        build(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_objective_is_its_own_settings():
    model = settings_model("ca")
    objective = build("ca", alpha=3.0, weight=0.5)
    assert isinstance(objective, model)
    assert build(**objective.model_dump(mode="json")) == objective
