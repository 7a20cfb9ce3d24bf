"""fewstep: distil flow-matching text-to-image models to four steps (CDM, arXiv 2605.06376).

The names below are all that a notebook needs; docs/python.md shows them at work. Importing the
package is quick: each name loads what it stands for, torch included, when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "FewstepError",
    "Model",
    "Recipe",
    "Run",
    "__version__",
    "evaluate",
    "load",
    "open",
    "plan",
]

if TYPE_CHECKING:
    from fewstep.config import Recipe
    from fewstep.evaluation import evaluate_run as evaluate
    from fewstep.inference.load import Model, load
    from fewstep.inference.load import open_model as open
    from fewstep.inference.run import Run
    from fewstep.planning import plan
    from fewstep.utils.errors import FewstepError

_PLACES = {
    "FewstepError": "fewstep.utils.errors:FewstepError",
    "Model": "fewstep.inference.load:Model",
    "Recipe": "fewstep.config:Recipe",
    "Run": "fewstep.inference.run:Run",
    "evaluate": "fewstep.evaluation:evaluate_run",
    "load": "fewstep.inference.load:load",
    "open": "fewstep.inference.load:open_model",
    "plan": "fewstep.planning:plan",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    """The public names, whether loaded or not."""
    return sorted({*globals(), *__all__})
