"""The recipe of a run: YAML or Python values to frozen records and back, strictly.

Every key is checked before anything happens: an unknown key, a wrong type or values that do not go
together raise a `ConfigError` of one line that says where.
"""

from fewstep.config.evaluate import EvaluateRecipe
from fewstep.config.monitor import CheckpointRecipe, HealthRecipe, LogRecipe, PreviewRecipe
from fewstep.config.optimizer import (
    FakeTeacherOptimizerRecipe,
    OptimizerRecipe,
    StudentOptimizerRecipe,
)
from fewstep.config.recipe import Recipe, missing_files
from fewstep.config.strict import ConfigError
from fewstep.config.training import EmaRecipe, FakeTeacherRecipe, LoraRecipe, StudentRecipe

__all__ = [
    "CheckpointRecipe",
    "ConfigError",
    "EmaRecipe",
    "EvaluateRecipe",
    "FakeTeacherOptimizerRecipe",
    "FakeTeacherRecipe",
    "HealthRecipe",
    "LogRecipe",
    "LoraRecipe",
    "OptimizerRecipe",
    "PreviewRecipe",
    "Recipe",
    "StudentOptimizerRecipe",
    "StudentRecipe",
    "missing_files",
]
