"""Training: `distill` turns a recipe into a run folder. The names load torch when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.train.optim import DivergedError, NonFiniteError
    from fewstep.train.signals import Stopped
    from fewstep.train.trainer import distill

__all__ = ["DivergedError", "NonFiniteError", "Stopped", "distill"]

_PLACES = {
    "DivergedError": "optim",
    "NonFiniteError": "optim",
    "Stopped": "signals",
    "distill": "trainer",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fewstep.train.{_PLACES[name]}"), name)
