"""The command line: results go to stdout, progress to stderr."""

from fewstep.cli.commands import app
from fewstep.cli.entry import main, run

__all__ = ["app", "main", "run"]
