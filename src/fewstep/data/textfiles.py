"""Prompts in text files: .txt, .jsonl, .csv and .tsv, read line by line in little memory.

Bytes that are not UTF-8 come out as lone surrogates (Python's ``surrogateescape``), which no valid
text holds, so that whoever takes the texts can count the lines and quote them.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fewstep.utils.errors import FewstepError, did_you_mean
from fewstep.utils.files import regular_file

COLUMNS = ("prompt", "caption", "text")
"""Columns to look for when none is named; the first one that exists is read."""
Row: TypeAlias = tuple[int, str]
"""Number of a line, or of a table's row, from 1; the text as it is written, "" for none."""

_MOST = 2**20  # characters of a line
_HEAD = 2**16  # bytes that tell what kind of file it is
_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_MAGIC = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"BZh91AY": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "a parquet table",
    b"ARROW1": "an Arrow table",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF-": "a PDF",
    b"SQLite format 3\0": "an SQLite database",
}
_CONTROL = bytes([*range(7), *range(14, 27), *range(28, 32)])
_ESCAPED = re.compile("[\ud800-\udfff]")


def convert(text: str, label: str) -> str:
    """What to do about a line of a file that is not UTF-8: the encoding it looks like, a command.

    Args:
        text: The line, with what is not UTF-8 as lone surrogates.
        label: The file's name.
    """
    if is_unicode(text):
        return ""
    try:
        text.encode("utf-8", "surrogateescape").decode("gb2312")
        return f"; it looks like GBK, {_command(label, 'GBK')}"
    except UnicodeEncodeError:  # JSON spelt half a character
        return ""
    except UnicodeDecodeError:
        return f"; if it is an older Western text, {_command(label, 'WINDOWS-1252')}"


def _command(label: str, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(label)} > NEW"


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate: no byte that was not UTF-8, no half of a character."""
    return text.isascii() or _ESCAPED.search(text) is None


# --------------------------------------------------------------------------------------- formats


def plain(file: Path, column: str | None, label: str) -> Iterator[Row]:
    """One prompt a line."""
    if column is not None:
        raise FewstepError(f"{label}: a .txt file has no column {column!r}; leave data.column out")
    return _lines(file, label)


def jsonl(file: Path, column: str | None, label: str) -> Iterator[Row]:
    """One JSON value a line: an object with the column, or a string."""
    for number, line in _lines(file, label):
        if not line.strip() or not is_unicode(line):
            yield number, line
            continue
        where = f"{label}, line {number}"
        try:
            record = json.loads(line, parse_int=float)  # any number of digits
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise FewstepError(
                f"{where}: not JSON: {why}; one object a line: jq -c . {shlex.quote(label)} > NEW"
            ) from error
        if isinstance(record, list):
            raise FewstepError(
                f"{where}: a list; one object a line: jq -c '.[]' {shlex.quote(label)} > NEW"
            )
        is_text = isinstance(record, str) and column is None
        yield number, record if is_text else _field(record, column, where)


def table(file: Path, column: str | None, label: str) -> Iterator[Row]:
    """Comma, semicolon or tab between the fields; the first line names the columns."""
    damaged: list[Row] = []
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in _lines(file, label):
            if is_unicode(line):
                yield line
            else:
                damaged.append((number, line))

    source = lines()
    header = next(source, "")
    try:
        names, place, delimiter = _header(header, column, label) if header else ([], 0, ",")
        for fields in csv.reader(source, delimiter=delimiter, strict=True):
            yield from damaged
            damaged.clear()
            if not fields:  # a blank line
                continue
            if len(fields) > len(names):
                raise FewstepError(
                    f"{label}, line {number}: {len(fields)} fields under {len(names)} columns; "
                    'put quotes around a prompt with a comma: "a, b"'
                )
            yield number, fields[place] if place < len(fields) else ""
    except csv.Error as error:
        raise FewstepError(
            f"{label}, line {number}: not CSV: {error}; look for a quote that is not closed, "
            'and write a quote inside of quotes twice ("")'
        ) from error
    yield from damaged


def _header(line: str, column: str | None, label: str) -> tuple[list[str], int, str]:
    """Names of the columns, which of them holds the prompts, and what stands between them."""
    for delimiter in ",;\t":
        names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        for name in _wanted(column):
            if names.count(name) > 1:
                raise FewstepError(f"{label}, line 1: two columns are called {name!r}; rename one")
            if name in names:
                return names, names.index(name), delimiter
    names = next(csv.reader([line]), [])
    raise FewstepError(
        f"{label}, line 1: the first line must name the columns: no {no_column(column, names)}"
    )


# ----------------------------------------------------------------------------------------- lines


def _lines(file: Path, label: str) -> Iterator[Row]:
    """Numbered lines with their ends, without a byte order mark.

    Raises:
        FewstepError: It is no text, or a line does not end.
        OSError: It cannot be read.
    """
    with io.BufferedReader(io.FileIO(regular_file(file)), _HEAD) as raw:
        _refuse_other(raw.peek(), label)
        stream = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        for number, line in enumerate(iter(partial(stream.readline, _MOST), ""), 1):
            if len(line) == _MOST:
                raise FewstepError(
                    f"{label}, line {number}: longer than {_MOST:,} characters; "
                    "write one prompt a line"
                )
            yield number, line


def _refuse_other(head: bytes, label: str) -> None:
    """Refuses what is recognisably something other than UTF-8 text, by its first bytes."""
    if encoding := _wide_encoding(head):
        raise FewstepError(f"{label}: not UTF-8 but {encoding} text; {_command(label, encoding)}")
    kinds = [kind for magic, kind in _MAGIC.items() if head.startswith(magic)]
    if kinds or len(head) - len(head.translate(None, _CONTROL)) > len(head) / 100:
        raise FewstepError(
            f"{label}: holds {kinds[0] if kinds else 'binary data'}, not text; unpack or convert "
            "it to .txt, .jsonl, .csv or .parquet, and name it so"
        )


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by a byte order mark, or UTF-16 by its zeros: all odd or all even."""
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    even, odd = head[::2].count(0), head[1::2].count(0)
    if (even > 0) == (odd > 0):
        return None
    encoding = "UTF-16BE" if even else "UTF-16LE"
    text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")
    readable = sum(character.isprintable() or character.isspace() for character in text)
    return encoding if readable > 0.99 * len(text) else None


# --------------------------------------------------------------------------------------- columns


def no_column(column: str | None, known: Iterable[Any]) -> str:
    """What to do where a column, or all of `COLUMNS`, is not among those known."""
    if column is None:
        return f"{', '.join(COLUMNS)}; name the column with data.column"
    names = [_shown(str(name)) for name in itertools.islice(known, 20)]
    return f"{column}; {did_you_mean(column, names)}"


def _shown(name: str) -> str:
    """A name as a message can hold it."""
    return "".join(c if c.isprintable() else "?" for c in name[:40])


def _wanted(column: str | None) -> tuple[str, ...]:
    return COLUMNS if column is None else (column,)


def _field(record: object, column: str | None, where: str) -> str:
    values = record if isinstance(record, Mapping) else {}
    for key in _wanted(column):
        value = values.get(key, ...)
        if isinstance(value, str) or value is None:
            return value or ""
    raise FewstepError(f"{where}: no text under {no_column(column, values)}")


READERS: dict[str, Callable[[Path, str | None, str], Iterator[Row]]] = {
    ".txt": plain,
    ".jsonl": jsonl,
    ".csv": table,
    ".tsv": table,
}
"""What reads a file, by the end of its name: (file, column, name to show) -> rows."""
