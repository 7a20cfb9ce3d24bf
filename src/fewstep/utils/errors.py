"""Errors meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar, Literal, Self

Code = Literal[
    "invalid",  # a value, a line or a file that is not what it must be
    "usage",  # a command line that cannot be read
    "config",  # a recipe or an override that cannot be used
    "unknown-name",  # a name that is not among the options
    "missing-file",  # a file, a folder, a checkpoint or a repo that is not there
    "missing-input",  # something that must be given, or made first, was not
    "missing-dependency",  # an optional package that is not installed or cannot be imported
    "no-access",  # a file or a device that cannot be used: rights, a full disk, another process
    "exists",  # a destination that holds something else
    "damaged",  # a file that is truncated or not what its name says
    "version",  # a file written by another version of fewstep
    "mismatch",  # things that do not belong together, such as weights and a model
    "out-of-range",  # a number, such as a picture's height, outside what is allowed
    "unsupported",  # a model, or something that this model or this setup cannot do
    "distilled-teacher",  # a model that was already distilled
    "non-finite",  # a loss, a gradient or a weight that is infinite or not a number
    "diverged",  # training that came apart, and a checkpoint of it
    "out-of-memory",  # the memory of the machine or of its accelerator does not suffice
    "process-lost",  # another process of the job has ended
]


TOLD = 5
"""Errors that one line tells where there are several."""
SHOWN = 80
"""Characters of a wrong value that a message shows."""


class FewstepError(ValueError):
    """An error whose one-line message says what is wrong and what to do.

    The command line prints the message and exits with code 2; no traceback is shown.

    Attributes:
        code: What kind of error this is, for programs; the message's wording may change, this
            does not.
        problems: The errors that it stands for, if it stands for several; else itself.
    """

    default_code: ClassVar[Code] = "invalid"

    def __init__(self, message: str, *, code: Code | None = None) -> None:
        """Keeps the message and its code; None: the default of the class."""
        super().__init__(message)
        self.code: Code = code or self.default_code
        self.problems: Sequence[FewstepError] = (self,)

    @classmethod
    def of(cls, errors: Sequence[FewstepError]) -> FewstepError | Self:
        """One error for several, which tells the first few of them; one alone stays what it is."""
        problems = [each for error in errors for each in error.problems]
        if len(problems) == 1:
            return problems[0]
        told = [f"({n}) {problem}" for n, problem in enumerate(problems[:TOLD], start=1)]
        more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        codes = {problem.code for problem in problems}
        message = f"{len(problems)} problems: {'; '.join([*told, *more])}"
        found = cls(message, code=codes.pop() if len(codes) == 1 else None)
        found.problems = problems
        return found


@contextmanager
def all_at_once(
    kind: type[FewstepError] = FewstepError,
) -> Iterator[Callable[..., AbstractContextManager[None]]]:
    """Context that tells all errors of its parts together, at its end.

    Args:
        kind: Class of an error that stands for several.

    Yields:
        What makes the context of a part, which an error ends; what follows it still runs. Given a
        key of a recipe, the part's errors begin with it.

    Raises:
        FewstepError: Parts ended in errors.
    """
    found: list[FewstepError] = []

    @contextmanager
    def part(key: str = "") -> Iterator[None]:
        try:
            yield
        except FewstepError as error:
            for each in error.problems:
                told = str(each) if str(each).startswith(key) else f"{key}: {each}"
                found.append(type(each)(told, code=each.code) if told != str(each) else each)

    yield part
    if found:
        raise kind.of(found) from found[0]


def shortened(value: object) -> str:
    """A wrong value as Python writes it; the middle is left out if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 10]}...{text[-7:]}"


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Hint that names the option closest to a mistyped word, else all the options.

    Args:
        word: What was written.
        options: What could have been written.

    Returns:
        A clause to append to a message, such as ``did you mean 'alpha'?``.
    """
    known = sorted(options)
    close = difflib.get_close_matches(word[:SHOWN], known, n=1, cutoff=0.5)
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
    return FewstepError(
        f"unknown {kind} {shortened(word)}: {did_you_mean(word, options)}", code="unknown-name"
    )
