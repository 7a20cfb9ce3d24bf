"""Tables as plain text: aligned columns under headings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeAlias

DASH = "-"
Table: TypeAlias = tuple[str, Sequence[str], Sequence[Sequence[object]]]
"""Title, columns and rows."""


def cell(value: object) -> str:
    """A value as a table shows it: four significant digits, ``-`` for what is not there."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or DASH
    return " ".join(str(value).split())


def text_table(table: Table, width: int | None = None) -> str:
    """A table as lines of text.

    Args:
        table: Title, columns and rows; a title of "" is left out.
        width: Characters of a line; the last column is wrapped to fit. None does not wrap.
    """
    title, *lines = table[0], table[1], *table[2]
    rows = [[cell(value) for value in row] for row in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        widths[-1] = max(min(widths[-1], width - sum(widths[:-1]) - 2 * (len(widths) - 1)), 16)
    text = [title] if title else []
    for row in rows:
        first, *others = textwrap.wrap(row[-1], widths[-1]) or [""]
        for last, values in [(first, row[:-1]), *((line, [""] * len(row[:-1])) for line in others)]:
            padded = (value.ljust(n) for value, n in zip([*values, last], widths, strict=True))
            text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def text_tables(tables: Iterable[Table], width: int | None = None) -> str:
    """Several tables, with an empty line between them."""
    return "\n\n".join(text_table(table, width) for table in tables)
