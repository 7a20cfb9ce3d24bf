"""Errors meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FewstepError(ValueError):
    """An error whose one-line message says what is wrong and what to do.

    The command line prints the message and exits with code 2; no traceback is shown.
    """


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Hint that names the option closest to a mistyped word, else all the options.

    Args:
        word: What was written.
        options: What could have been written.

    Returns:
        A clause to append to a message, such as ``did you mean 'alpha'?``.
    """
    known = sorted(options)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there are none"


def unknown(kind: str, word: str, options: Iterable[str]) -> FewstepError:
    """Error for a name that is not among the options; names the nearest one.

    Args:
        kind: What the name stands for, such as ``objective``.
        word: What was written.
        options: What could have been written.

    Returns:
        The error, for the caller to raise.
    """
    return FewstepError(f"unknown {kind} {word!r}: {did_you_mean(word, options)}")
