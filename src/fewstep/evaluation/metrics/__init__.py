"""Metrics: one file each, found by name; installed packages may add more (``fewstep.metrics``)."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from fewstep.config.strict import ConfigError, Named, explain
from fewstep.evaluation.metrics.base import Metric
from fewstep.utils.registry import Registry

METRICS = Registry[type[Metric]](
    "metric",
    "fewstep.metrics",
    __name__,
    lambda module: {c.name: c for c in Metric.__subclasses__() if c.__module__ == module.__name__},
)


def build(recipes: Iterable[Named]) -> list[Metric]:
    """The metrics that a recipe lists, in its order.

    Raises:
        FewstepError: An unknown name or setting, a value that does not fit, or a name listed twice.
    """
    metrics: list[Metric] = []
    for recipe in recipes:
        cls = METRICS.get(recipe.name)
        if any(metric.name == cls.name for metric in metrics):
            raise ConfigError(f"evaluate.metrics: {recipe.name} is listed twice")
        try:
            metrics.append(cls.model_validate(recipe.settings))
        except ValidationError as error:
            where = f"evaluate.metrics: {recipe.name}"
            raise explain(error, cls, f"{where}: ") from error
    return metrics
