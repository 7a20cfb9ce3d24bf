"""Recipes of older run folders, read as they would be written now."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "fake_teacher.pull": "fake_teacher.ida_rate",
    "evaluate.arms": "evaluate.configurations",
    "evaluate.scores": "evaluate.metrics",
    "evaluate.truth": "evaluate.references",
    "evaluate.readings": "evaluate.cache",
    "evaluate.measurements": "evaluate.cache",
}
"""Dotted key that a recipe once had -> the key that says the same now."""
_OLD_PREVIEW_SCORES = "fewstep.evaluation.preview_scores:"


def migrated(saved: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a saved recipe under today's keys; the values given are left alone."""
    recipe = {k: dict(v) if isinstance(v, dict) else v for k, v in saved.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        inside = recipe.get(section)
        if isinstance(inside, dict) and key in inside:
            value = inside.pop(key)
            if value is not None:  # null stood for the default, which null need not be now
                inside[new.partition(".")[2]] = value
    if isinstance(preview := recipe.get("preview"), dict) and preview.get("score"):
        preview["score"] = preview["score"].removeprefix(_OLD_PREVIEW_SCORES)
    if isinstance(log := recipe.get("log"), dict) and "tensorboard" in log:
        log["sinks"] = ["tensorboard"] if log.pop("tensorboard") else []
    return recipe
