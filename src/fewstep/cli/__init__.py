"""The command line: results go to stdout, progress to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.cli.signals import end_on_signals

if TYPE_CHECKING:
    from fewstep.cli.commands import app
    from fewstep.cli.entry import run

__all__ = ["app", "main", "run"]


def main() -> None:
    """Entry point of the ``fewstep`` script: signals end it in order from its first moment."""
    end_on_signals()
    from fewstep.cli import entry

    entry.main()


def __getattr__(name: str) -> Any:
    """Imports what is left of the command line when it is first asked for."""
    if name not in ("app", "run"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fewstep.cli import entry

    return getattr(entry, name)
