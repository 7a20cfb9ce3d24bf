"""Objectives of another package are planned for: their calls, and the networks they train."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.planning import dry_run
from plugin import make_plugin

SOURCE = Path(__file__).parents[1] / "plugins" / "extra_objectives.py"
NAMES = {"adversarial": "Adversarial", "score_identity": "ScoreIdentity", "tangent": "Tangent"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package that brings objectives."""
    points = {name: f"extra_objectives:{cls}" for name, cls in NAMES.items()}
    files = {"extra_objectives.py": SOURCE.read_text(encoding="utf-8")}
    name = "extra_objectives"
    monkeypatch.syspath_prepend(
        make_plugin(tmp_path, {"fewstep.objectives": points}, files, name=name)
    )


def test_calls_and_networks_of_added_objectives_are_counted(installed, configs, recipe_of):
    def predicted(name):
        recipe = recipe_of(configs, objectives=[{"name": name}], student={"every": 1})
        return dry_run(recipe)

    plain, adversarial = predicted("dm"), predicted("adversarial")
    assert plain.evaluations.networks == 0 < adversarial.evaluations.networks
    names = [item.name for item in adversarial.memory if item.size]
    assert set(names) > {item.name for item in plain.memory if item.size}
    through_teachers = predicted("score_identity").evaluations
    assert through_teachers.backward > plain.evaluations.backward
    assert predicted("tangent").evaluations.total > 0
