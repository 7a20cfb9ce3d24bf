"""The border to diffusers and transformers: what they raise on a user's files becomes one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.utils.errors import FewstepError


def third_party(place: Path, call: Callable[..., Any], *given: Any, **how: Any) -> Any:
    """The result of a library's function on a user's files.

    Args:
        place: The file or folder that a failure is blamed on.
        call: The function.
        given: Its arguments.
        how: The same, by name.

    Raises:
        FewstepError: The library raised, whatever it was.
    """
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what they say of a fault is in the one line below
    try:
        with warnings.catch_warnings(action="ignore"):
            return call(*given, **how)
    except (FewstepError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". If you")[0]
        kind = type(error).__name__
        raise FewstepError(
            f"{place}: not usable: {reason[:300] or kind} ({kind}); get the model's folder again",
            code="damaged",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
