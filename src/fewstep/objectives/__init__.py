"""What the student is trained on: named objectives, one file each, found by discovery.

A file of this package that defines a subclass of `Objective` makes that objective available under
the default of its ``name``; nothing else has to be registered.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil

from pydantic import ValidationError

from fewstep.config.strict import ConfigError, explain
from fewstep.objectives.base import Objective, Pull, by_site, evaluate, refuse_misfits
from fewstep.objectives.pull import pull_loss, pull_norm
from fewstep.utils.errors import unknown

__all__ = [
    "Objective",
    "Pull",
    "available",
    "build",
    "by_site",
    "evaluate",
    "pull_loss",
    "pull_norm",
    "refuse_misfits",
    "settings_model",
]


def available() -> list[str]:
    """Names of all objectives, sorted."""
    return sorted(_found())


def settings_model(name: str) -> type[Objective]:
    """Model whose fields are the settings of an objective, which is the objective itself.

    Raises:
        FewstepError: There is no such objective; names the nearest.
    """
    if name not in _found():
        raise unknown("objective", name, _found())
    return _found()[name]


def build(name: str, **settings: object) -> Objective:
    """Objective of a name with its settings, as a recipe lists them.

    Raises:
        FewstepError: Unknown name or setting (names the nearest), or a value that does not fit.
    """
    model = settings_model(name)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"objective {name!r}: {explain(error, model)}") from error


@functools.cache
def _found() -> dict[str, type[Objective]]:
    found = {}
    for info in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(info.name)
        for _, member in inspect.getmembers(module, inspect.isclass):
            own = member.__module__ == module.__name__
            if own and issubclass(member, Objective) and not inspect.isabstract(member):
                found[member.model_fields["name"].default] = member
    return found
