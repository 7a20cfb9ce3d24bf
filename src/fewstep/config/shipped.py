"""Recipes that ship with the package, as YAML files in ``recipes/``."""

from __future__ import annotations

from pathlib import Path

from fewstep.utils.errors import FewstepError, did_you_mean
from fewstep.utils.resources import resolve

FOLDER = resolve("package://fewstep/recipes")
CONFIG = "config.yaml"
"""A run's own recipe, in its folder."""
SCHEMA = FOLDER / "recipe.schema.json"
"""JSON schema of recipes, for editors; `tools/settings.py` makes it from the records."""


def available() -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str | Path) -> Path:
    """The recipe file of a path, or of the name of a recipe that ships with the package.

    Raises:
        FewstepError: There is neither; names the nearest recipe.
    """
    path = resolve(name)
    if path.is_file():
        return path
    if str(name) in available():
        return FOLDER / f"{name}.yaml"
    raise FewstepError(
        f"{name}: no such recipe file, nor a shipped one; {did_you_mean(path.stem, available())}",
        code="missing-file",
    )


def run_folder(name: str | Path) -> Path | None:
    """The run folder of that path, if it is one."""
    path = resolve(name)
    return path if (path / CONFIG).is_file() else None
