"""What a recipe may change after a run has begun, and what it may not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewstep import models
from fewstep.config import Recipe
from fewstep.utils.errors import FewstepError

_MAY_CHANGE = (
    "train.steps",
    "train.device",
    "train.early_stop",
    "train.on_divergence",
    "model.force",
    "model.path",  # that it is the same model, its fingerprints prove
    "model.components",
    "model.loras",
    "data.cache_gb",
    "data.cache",
    "parallel",
    "checkpoint",
    "log",
    "evaluate",
    "card",
    "criteria",
    "memory.offload_optimizer",
    "memory.offload_ema",
    "memory.offload_vae",
)
"""What a resumed run may set anew; all else decides what the weights become."""
_MAY_CHANGE_GOING_BACK = (
    "student.optimizer.lr",
    "student.optimizer.clip",
    "fake_teacher.optimizer.lr",
    "fake_teacher.optimizer.clip",
    "fake_teacher.updates",
    "fake_teacher.ida_rate",
    "objectives",
    "train.warmup",
    "train.cooldown",
)
"""What else a run may set anew that goes back to one of its steps, to take another way from it."""
_STUDENT = ("model.options", "resolution", "grid", "student.mode", "student.lora")
"""What decides, beside the model, what a student's weights draw."""


def refuse_another_run(
    recipe: Recipe, began_with: Mapping[str, Any], *, going_back: bool = False
) -> None:
    """Checks that a recipe trains on as a checkpoint began.

    Args:
        recipe: As it is now.
        began_with: What the checkpoint holds.
        going_back: Whether rates and settings of objectives may be others from here on.

    Raises:
        FewstepError: A setting that decides what the weights become has another value.
    """
    free = _MAY_CHANGE + (_MAY_CHANGE_GOING_BACK if going_back else ())
    _refuse_changed(recipe, began_with, lambda key: not _is_of(key, free))
    old = Recipe.from_saved(dict(began_with))
    names, before = ([term.name for term in each.objectives] for each in (recipe, old))
    if names != before:
        raise FewstepError(
            f"objectives: the run was started with {', '.join(before)}, whose settings may change "
            "but not their names",
            code="mismatch",
        )


def refuse_another_student(recipe: Recipe, saved: Mapping[str, Any]) -> None:
    """Checks that a recipe still describes the student that a checkpoint holds.

    Args:
        recipe: As it is now.
        saved: The checkpoint's state.

    Raises:
        FewstepError: A setting that decides what the student's weights mean has another value.
    """
    if "recipe" in saved:
        _refuse_changed(recipe, saved["recipe"], lambda key: _is_of(key, _STUDENT))
    fused = (saved.get("identity") or {}).get("loras")
    if fused != models.fingerprints(recipe.model.address)["loras"]:
        raise FewstepError(
            "model.loras: not the LoRAs that the run was trained with; put them back",
            code="mismatch",
        )


def _refuse_changed(
    recipe: Recipe, began_with: Mapping[str, Any], decides: Callable[[str], bool]
) -> None:
    """Checks a recipe against the one in a checkpoint.

    Args:
        recipe: As it is now.
        began_with: What the checkpoint holds.
        decides: Which keys must have the same value.

    Raises:
        FewstepError: One of them has another.
    """
    old = _flat(Recipe.from_saved(dict(began_with)).model_dump(mode="json"))
    new = _flat(recipe.model_dump(mode="json"))
    for key in sorted(new.keys() | old.keys()):
        if decides(key) and new.get(key) != old.get(key):
            raise FewstepError(
                f"{key}: the run was started with {old.get(key)!r}, not {new.get(key)!r}; "
                "start another run folder or set it back",
                code="mismatch",
            )


def _is_of(key: str, sections: Sequence[str]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in sections)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{path}.{key}" if path else key)
    return found
