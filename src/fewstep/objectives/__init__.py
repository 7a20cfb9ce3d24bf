"""What the student is trained on: objectives, found by name.

A file of this package that defines a subclass of `Objective` adds it under the default of its
``name``; other packages add theirs by entry points of the group ``fewstep.objectives``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fewstep.config import Recipe
from fewstep.config.strict import ConfigError, explain
from fewstep.objectives.base import (
    AnchorBatch,
    Context,
    Objective,
    Pull,
    TrainedNetwork,
    by_site,
    contexts,
    evaluate,
    pull_loss,
    pull_norm,
    refuse_unsupported,
)
from fewstep.objectives.queries import Asking, Networks, Prediction, Query, drive
from fewstep.utils.errors import all_at_once
from fewstep.utils.registry import Registry

__all__ = [
    "AnchorBatch",
    "Asking",
    "Context",
    "Networks",
    "Objective",
    "Prediction",
    "Pull",
    "Query",
    "TrainedNetwork",
    "available",
    "build",
    "build_all",
    "by_site",
    "contexts",
    "drive",
    "evaluate",
    "pull_loss",
    "pull_norm",
    "refuse_unsupported",
    "settings_model",
]


def _defined_in(module: Any) -> Mapping[str, type[Objective]]:
    return {
        member.model_fields["name"].default: member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
        and issubclass(member, Objective)
        and not inspect.isabstract(member)
    }


_REGISTRY: Registry[type[Objective]] = Registry(
    "objective", "fewstep.objectives", package=__name__, members=_defined_in
)


def available() -> list[str]:
    """Names of all objectives, sorted."""
    return _REGISTRY.available()


def settings_model(name: str) -> type[Objective]:
    """Model whose fields are the settings of an objective, which is the objective itself.

    Raises:
        FewstepError: There is no such objective; names the nearest.
    """
    return _REGISTRY.get(name)


def build(name: str, **settings: object) -> Objective:
    """Objective of a name with its settings, as a recipe lists them.

    Raises:
        FewstepError: Unknown name or setting (names the nearest), or a value that does not fit.
    """
    model = settings_model(name)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise explain(error, model, f"objective {name!r}: ") from error


def build_all(recipe: Recipe) -> list[Objective]:
    """A recipe's objectives.

    Raises:
        ConfigError: One is unknown or has settings that do not fit; one line says which.
    """
    built = []
    with all_at_once(ConfigError) as part:
        for number, each in enumerate(recipe.objectives):
            with part(f"objectives.{number}"):
                built.append(build(each.name, **each.settings))
    return built
