"""Recipes from YAML and back; whatever is wrong is told in one line that says where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.config.data import is_repo_id
from fewstep.config.recipe import Recipe
from fewstep.config.strict import ConfigError, apply_override, explain, one_line
from fewstep.utils import yaml
from fewstep.utils.resources import resolve


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, files: bool = True) -> Recipe:
    """Recipe in a YAML file, with ``a.b=value`` overrides applied; the values are YAML.

    Args:
        path: The file, or ``package://...``.
        overrides: Applied one after the other.
        files: Refuse a recipe that names files which are not there.

    Raises:
        ConfigError: One line that says what is wrong and where.
    """
    file = resolve(path)
    try:
        data = yaml.load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"{path}: cannot read the recipe: {reason}", code="missing-file"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, such as model and data")
    for override in overrides:
        apply_override(data, override, Recipe)
    recipe = parse_recipe(data)
    for key, missing in missing_files(recipe).items() if files else ():
        raise ConfigError(f"{key}: there is no file {missing}", code="missing-file")
    return recipe


def parse_recipe(data: dict[str, Any]) -> Recipe:
    """Recipe made of plain values.

    Raises:
        ConfigError: One line that says what is wrong and where.
    """
    try:
        # JSON's strictness is the wanted one: lists become tuples, but "3" is not a number.
        return Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError(explain(error, Recipe)) from error
    except TypeError as error:
        raise ConfigError(f"recipe: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML text of a recipe, defaults written out; `load_recipe` gives the same recipe back."""
    return yaml.dump(recipe.model_dump(mode="json"))


def missing_files(recipe: Recipe) -> dict[str, str]:
    """Files that a recipe names and that are not there, by key."""
    files = {
        "data.prompts": recipe.data.prompts,
        "preview.path": recipe.preview.path,
        "evaluate.prompts": recipe.evaluate.prompts,
    }
    missing = {key: file for key, file in files.items() if file and not resolve(file).is_file()}
    source = recipe.data.prompts  # may also be a folder of tables, or a data set of the hub
    if resolve(source).exists() or is_repo_id(source):
        missing.pop("data.prompts", None)
    return missing
