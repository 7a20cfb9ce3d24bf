"""The page of all settings and the JSON schema say what the records say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.config import shipped
from fewstep.utils import yaml

TOOL = Path(__file__).resolve().parents[2] / "tools" / "settings.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("settings", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator(tool: Any) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(tool.recipe_schema())


def test_page_and_schema_are_fresh(tool: Any) -> None:
    assert tool.stale() == [], "run python tools/settings.py"


def test_every_setting_has_a_meaning(tool: Any) -> None:
    items = tool.Page(tool.recipe_schema()).text().split("\n- **")[1:]
    assert len(items) > 100
    assert [item for item in items if item.partition("\n\n")[0].rstrip().endswith("):")] == []


@pytest.mark.parametrize("name", shipped.available())
def test_the_schema_accepts_what_ships(validator: Any, name: str) -> None:
    recipe = yaml.load(shipped.find(name).read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(recipe)] == []


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"objectives": [{"name": "ca", "alpha": 7, "weight": 0.5}]}, True),
        ({"objectives": [{"name": "ca", "alhpa": 7}]}, False),
        ({"objectives": [{"name": "of_another_package", "anything": 7}]}, True),
        ({"objectives": []}, False),
        ({"trian": {"steps": 3}}, False),
        ({"grid": {"name": "fixed", "shift": 1.2}}, True),
        ({"grid": {"name": "fixed", "max_steps": 2}}, False),
        ({"fake_teacher": {"target": "final"}}, True),
        ({"fake_teacher": {"target": "end"}}, False),
        ({"log": {"sinks": ["tensorboard", {"name": "wandb", "project": "mine"}]}}, True),
        ({"ema": None}, True),
        ({"train": {"steps": 0}}, False),
    ],
)
def test_the_schema_tells_right_from_wrong(
    validator: Any, changes: dict[str, Any], right: bool
) -> None:
    recipe = yaml.load(shipped.find("demo").read_text(encoding="utf-8")) | changes
    assert validator.is_valid(json.loads(json.dumps(recipe))) is right
