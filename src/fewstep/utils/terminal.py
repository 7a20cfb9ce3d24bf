"""Text for a terminal or a log: what file names, prompts and keys hold cannot act there."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    r"\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line breaks, and what turns the reading direction
    r"\ud800-\udfff]"  # halves of characters, as names of files that are not UTF-8 hold
)
_SECRETS = (
    (re.compile(r"(\w://)[^/\s@]+@"), r"\1***@"),  # user and password in an address
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),  # access tokens of the hub
)


def printable(text: str) -> str:
    """A text as it may be shown: nothing in it moves a cursor, and secrets are masked."""
    return _ACTING.sub("\ufffd", masked(text))


def masked(text: str) -> str:
    """A text without user names in URLs and without access tokens."""
    for secret, mask in _SECRETS:
        text = secret.sub(mask, text)
    return text


def one_line(text: str, *, at_most: int = 2000) -> str:
    """A text as one printable line, its middle left out if it is long."""
    line = " ".join(printable(text).split())
    return line if len(line) <= at_most else f"{line[: at_most - 300]} ... {line[-290:]}"


def tell(console: Console, text: str) -> None:
    """Prints one line as it is: markup in it is text."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class Printable(logging.Formatter):
    """Log records as printable lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message."""
        return one_line(super().format(record))
