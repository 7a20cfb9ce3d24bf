"""What a recipe will take, counted from its settings and the model's configurations alone."""

from fewstep.plan.dry_run import DryRun, dry_run
from fewstep.plan.evaluations import Evaluations, count_evaluations
from fewstep.plan.files import File, files_of
from fewstep.plan.memory import Item
from fewstep.plan.parameters import Parameters, count_parameters

__all__ = [
    "DryRun",
    "Evaluations",
    "File",
    "Item",
    "Parameters",
    "count_evaluations",
    "count_parameters",
    "dry_run",
    "files_of",
]
