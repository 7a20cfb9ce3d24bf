"""The porting matrix: each published model, how it is understood, and which recipes there are."""

from __future__ import annotations

from typing import Any

from fewstep.config import shipped
from fewstep.models import REFUSED, available
from fewstep.utils import yaml

SHOWN = (
    "model",
    "class",
    "prediction",
    "guidance",
    "shift",
    "encoders",
    "parameters",
    "status",
    "recipes",
    "notes",
)
"""Columns for people; the rows have more."""
REFUSED_COLUMNS = ("model", "class", "reason", "instead")


def matrix() -> list[dict[str, Any]]:
    """A row per published model; a family that names none has a row of its own."""
    shipped = recipes_by_model()
    rows: list[dict[str, Any]] = []
    for family in available():
        common: dict[str, Any] = {
            "name": family.name,
            "pipelines": list(family.pipelines),
            "prediction": family.prediction,
            "guidance": family.guidance,
            "notes": family.notes,
        }
        for each in family.models:
            row = {
                "model": each.model,
                "repo": each.repo,
                "class": each.pipeline or family.pipelines[0],
                "shift": each.shift,
                "encoders": each.encoders,
                "parameters": f"{each.parameters:g} B",
                "status": each.status,
                "recipes": shipped.get(each.repo, []),
                "notes": each.notes or family.notes,
            }
            rows.append(common | row)
        if not family.models:
            nothing = dict.fromkeys(SHOWN) | {"repo": None, "recipes": [], "notes": family.notes}
            rows.append(
                nothing
                | common
                | {"model": family.name, "class": family.pipelines[0], "status": family.status}
            )
    return rows


def refused() -> list[dict[str, str]]:
    """A row per model that is no teacher, with the reason and what to use instead."""
    return [
        {
            "model": each.model,
            "repo": each.repo,
            "class": each.pipeline,
            "status": "refused",
            "reason": each.reason,
            "instead": each.instead,
        }
        for each in REFUSED
    ]


def recipes_by_model() -> dict[str, list[str]]:
    """Names of the shipped recipes, by the repo id that each starts from."""
    found: dict[str, list[str]] = {}
    for name in shipped.available():
        try:
            content = yaml.load(shipped.find(name).read_text(encoding="utf-8"))
        except yaml.YAMLError:
            continue
        found.setdefault(content["model"]["path"], []).append(name)
    return found
