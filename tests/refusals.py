"""What an error says, as data: its code, the place it begins with, and the names in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fewstep.utils.errors import Code, FewstepError


@contextmanager
def refuses(
    code: Code, place: object = "", kind: type[FewstepError] = FewstepError
) -> Iterator[pytest.ExceptionInfo[FewstepError]]:
    """Context that must end in an error of a code, in one line.

    Args:
        code: Which one.
        place: Path or key that the message begins with.
        kind: Class of the error.
    """
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert caught.value.code == code, message
    assert message.startswith(str(place)), message
    assert len(message.splitlines()) == 1, message


def names_in(error: object) -> set[str]:
    """Names, numbers and paths that a message holds: its words, without punctuation around them."""
    return {word.strip("'\"`(),;:.?") for word in re.split(r"\s", str(error))}
