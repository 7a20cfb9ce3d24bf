"""The table of models: each published model, its family, and its recipes."""

from __future__ import annotations

from typing import Any

from fewstep.config import shipped
from fewstep.models import REFUSED, available
from fewstep.utils import yaml

SHOWN = ("model", "parameters", "guidance", "recipes", "notes")
"""Columns that people are shown; with --json, rows have more."""
REFUSED_COLUMNS = ("model", "reason", "instead")


def matrix() -> list[dict[str, Any]]:
    """A row per published model; a family without one has a row of its own."""
    recipes = recipes_by_model()
    rows: list[dict[str, Any]] = []
    for family in available():
        common: dict[str, Any] = {
            "name": family.name,
            "pipelines": list(family.pipelines),
            "prediction": family.prediction,
            "guidance": family.guidance,
            "notes": family.notes,
        }
        if not family.models:
            row: dict[str, Any] = {
                "model": family.name,
                "class": family.pipelines[0],
                "status": family.status,
            }
            missing = dict.fromkeys(("repo", "shift", "encoders", "parameters"))
            rows.append(missing | {"recipes": []} | common | row)
        for model in family.models:
            row = {
                "model": model.model,
                "repo": model.repo,
                "class": model.pipeline or family.pipelines[0],
                "shift": model.shift,
                "encoders": model.encoders,
                "parameters": f"{model.parameters:g} B",
                "status": model.status,
                "recipes": recipes.get(model.repo, []),
                "notes": model.notes or family.notes,
            }
            rows.append(common | row)
    return rows


def refused() -> list[dict[str, str]]:
    """A row per model that is no teacher, with the reason and what to use instead."""
    return [
        {
            "model": model.model,
            "repo": model.repo,
            "class": model.pipeline,
            "status": "refused",
            "reason": model.reason,
            "instead": model.instead,
        }
        for model in REFUSED
    ]


def recipes_by_model() -> dict[str, list[str]]:
    """Names of the shipped recipes, by the repo id that each starts from."""
    names: dict[str, list[str]] = {}
    for name in shipped.available():
        try:
            content = yaml.load(shipped.find(name).read_text(encoding="utf-8"))
        except yaml.YAMLError:
            continue
        names.setdefault(content["model"]["path"], []).append(name)
    return names
