"""The recipe of a run: YAML to frozen records and back, strictly.

Every key is checked before anything happens: an unknown key, a wrong type, values that do not go
together or a missing file raise a `ConfigError` of one line that says where.
"""

from fewstep.config.evaluate import EvaluateRecipe
from fewstep.config.optimizer import (
    FakeTeacherOptimizerRecipe,
    OptimizerRecipe,
    StudentOptimizerRecipe,
)
from fewstep.config.reading import dump_recipe, load_recipe, missing_files, parse_recipe
from fewstep.config.recipe import (
    CheckpointRecipe,
    EmaRecipe,
    FakeTeacherRecipe,
    HealthRecipe,
    LogRecipe,
    LoraRecipe,
    PreviewRecipe,
    Recipe,
    StudentRecipe,
)
from fewstep.config.strict import ConfigError

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
    "dump_recipe",
    "load_recipe",
    "missing_files",
    "parse_recipe",
]
