"""Recipes of older run folders, read as they would be written now."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "fake_teacher.pull": "fake_teacher.ida_rate",
    "evaluate.arms": "evaluate.configurations",
}
"""Dotted key that a recipe once had -> the key that says the same now."""


def migrated(saved: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a saved recipe under today's keys; the values given are left alone."""
    found = {k: dict(v) if isinstance(v, dict) else v for k, v in saved.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        inside = found.get(section)
        if isinstance(inside, dict) and key in inside:
            inside[new.partition(".")[2]] = inside.pop(key)
    return found
