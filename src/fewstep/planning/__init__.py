"""What a recipe will take, counted from its settings and the model's configurations alone."""

from fewstep.planning.counts import Evaluations, Parameters, count_parameters
from fewstep.planning.disk import File, files_of
from fewstep.planning.dry_run import DryRun, dry_run
from fewstep.planning.memory import Item
from fewstep.planning.plans import Plan, plan

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
