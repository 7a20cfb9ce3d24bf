"""fewstep: distil flow-matching text-to-image models to four steps (CDM, arXiv 2605.06376).

Importing the package is quick: torch, diffusers and transformers are loaded by the modules that
use them.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
