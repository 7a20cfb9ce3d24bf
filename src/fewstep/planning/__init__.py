"""What a recipe will take, counted from its settings and the model's configurations alone."""

from fewstep.planning.dry_run import DryRun, dry_run
from fewstep.planning.estimate import Plan, plan
from fewstep.planning.evaluations import Evaluations
from fewstep.planning.files import File, files_of
from fewstep.planning.memory import Item
from fewstep.planning.parameters import Parameters, count_parameters

__all__ = [
    "DryRun",
    "Evaluations",
    "File",
    "Item",
    "Parameters",
    "Plan",
    "count_parameters",
    "dry_run",
    "files_of",
    "plan",
]
