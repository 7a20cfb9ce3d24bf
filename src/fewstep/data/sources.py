"""Sources of prompts: text files, tables, folders of tables, data sets on the hub.

The files of a data set are read as they are, by pyarrow: those on the hub (.parquet, .jsonl, .csv)
and those that `datasets` writes with ``save_to_disk`` (.arrow). No code of a data set is run.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.config.data import is_repo_id
from fewstep.utils.errors import FewstepError, did_you_mean
from fewstep.utils.resources import resolve

COLUMNS = ("prompt", "caption", "text")
"""Columns to look for when none is named; the first one that exists is read."""
TABLES = (".parquet", ".arrow", ".jsonl", ".csv")
"""Files of a data set; in a folder with several kinds only the first of these is read."""
_DEFAULT_SPLIT = "train"


def read_texts(
    path: str | Path, *, column: str | None = None, split: str | None = None
) -> Iterator[str | None]:
    """Every prompt as it is written: a text, "" for an empty line, None if it is not UTF-8.

    Args:
        path: A .txt file (one prompt a line), a .jsonl, .csv, .parquet or .arrow file, a folder of
            such tables, or the id of a data set on the hub.
        column: Which column or key holds the prompt; None takes the first one of `COLUMNS`.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.

    Raises:
        FewstepError: Nothing there, an unknown kind, or a broken line; one line says where.
    """
    place = resolve(path)
    if place.is_dir() or (not place.exists() and is_repo_id(str(path))):
        folder = place if place.is_dir() else _fetched(str(path), split)
        for file in _tables_of(folder, str(path), split):
            yield from _READERS[file.suffix](file, column, f"{path}/{file.relative_to(folder)}")
        return
    if split is not None:
        raise FewstepError(f"{path}: one file has no splits; leave data.split out")
    if place.suffix not in _READERS:
        raise FewstepError(f"{path}: prompts must be .txt, .jsonl, .csv, .parquet or a folder")
    try:
        yield from _READERS[place.suffix](place, column, str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise FewstepError(
            f"{path}: cannot read the prompts: {reason}", code="missing-file"
        ) from error


# ------------------------------------------------------------------------------------ text files

Lines = Iterable[tuple[int, str | None]]


def _plain(file: Path, column: str | None, label: str) -> Iterator[str | None]:
    if column is not None:
        raise FewstepError(f"{label}: a .txt file has no column {column!r}; leave data.column out")
    return (text for _, text in _lines(file))


def _jsonl(file: Path, column: str | None, label: str) -> Iterator[str | None]:
    for number, line in _lines(file):
        if line is None or not line.strip():
            yield line and ""
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FewstepError(f"{label}, line {number}: not JSON: {error.msg}") from error
        text = isinstance(record, str) and column is None
        prompt = record if text else _field(record, column, f"{label}, line {number}")
        yield _decoded(prompt.encode("utf-8", "surrogatepass"))  # JSON can spell half a character


def _csv(file: Path, column: str | None, label: str) -> Iterator[str | None]:
    lines = [text for _, text in _lines(file)]
    yield from (None for text in lines if text is None)
    rows = csv.DictReader(text for text in lines if text is not None)
    try:
        for row in rows:
            yield _field(row, column, f"{label}, line {rows.line_num}")
    except csv.Error as error:
        raise FewstepError(f"{label}, line {rows.line_num}: not CSV: {error}") from error


def _lines(file: Path) -> Lines:
    """Numbered lines with their ends; None for one that is not UTF-8."""
    raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    return ((number, _decoded(line)) for number, line in enumerate(raw, 1))


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _field(record: object, column: str | None, where: str) -> str:
    values = record if isinstance(record, Mapping) else {}
    for key in (column,) if column is not None else COLUMNS:
        value = values.get(key, ...)
        if isinstance(value, str) or value is None:
            return value or ""
    raise FewstepError(f"{where}: no text under {_wanted(column, values)}")


def _wanted(column: str | None, known: Iterable[Any]) -> str:
    if column is None:
        return f"{', '.join(COLUMNS)}; name the column with data.column"
    return f"{column}; {did_you_mean(column, [str(name) for name in known])}"


# ---------------------------------------------------------------------------------------- tables


def _parquet(file: Path, column: str | None, label: str) -> Iterator[str | None]:
    arrow = _pyarrow(label)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            name = _column(table.schema_arrow.names, column, label)
            for batch in table.iter_batches(columns=[name]):
                yield from _texts(arrow, batch.column(0), f"{label}, column {name}")
    except arrow.ArrowException as error:
        raise _broken(label, "parquet", error) from error


def _arrow(file: Path, column: str | None, label: str) -> Iterator[str | None]:
    arrow = _pyarrow(label)
    try:
        with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as batches:
            name = _column(batches.schema.names, column, label)
            for batch in batches:
                yield from _texts(arrow, batch.column(name), f"{label}, column {name}")
    except arrow.ArrowException as error:
        raise _broken(label, "arrow", error) from error


def _pyarrow(label: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise FewstepError(
            f"{label}: needs pyarrow; pip install 'fewstep[data]'", code="missing-dependency"
        ) from error
    return pyarrow


def _column(names: list[str], column: str | None, label: str) -> str:
    for name in (column,) if column is not None else COLUMNS:
        if name in names:
            return name
    raise FewstepError(f"{label}: no column {_wanted(column, names)}", code="unknown-name")


def _texts(arrow: Any, array: Any, label: str) -> Iterator[str | None]:
    """The texts of a column; read as bytes, since pyarrow does not check that they are UTF-8."""
    if arrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise FewstepError(f"{label}: holds {kind}, not text; name another with data.column")
    for raw in array.cast(arrow.large_binary()).to_pylist():
        yield "" if raw is None else _decoded(raw)


def _broken(label: str, kind: str, error: Exception) -> FewstepError:
    return FewstepError(
        f"{label}: not a sound {kind} file: {' '.join(str(error).split())}", code="damaged"
    )


_READERS: dict[str, Callable[[Path, str | None, str], Iterator[str | None]]] = {
    ".txt": _plain,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


# --------------------------------------------------------------------------------------- folders


def _fetched(repo: str, split: str | None) -> Path:
    """The tables of a data set on the hub, from the local cache where they are there already."""
    from huggingface_hub import snapshot_download

    part = f"{split}*" if split else ""
    try:
        folder = snapshot_download(
            repo, repo_type="dataset", allow_patterns=[f"*{part}{kind}" for kind in TABLES]
        )
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewstepError(
            f"{repo}: cannot read the prompts: no such file or folder; the hub refused: {first}",
            code="missing-file",
        ) from error
    return Path(folder)


def _tables_of(folder: Path, label: str, split: str | None) -> list[Path]:
    """Files of a folder that hold the wanted split, in order, all of one kind.

    A file belongs to a split that is a word of its path: ``train/a.parquet``,
    ``data/train-00000-of-00002.parquet``.
    """
    inside = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    files = [p for p, rel in inside.items() if not any(part[0] == "." for part in rel.parts)]
    kinds = [kind for kind in TABLES if any(path.suffix == kind for path in files)]
    if not kinds:
        raise FewstepError(
            f"{label}: there is no {', '.join(TABLES)} file in it", code="missing-file"
        )
    tables = sorted(path for path in files if path.suffix == kinds[0])
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split or _DEFAULT_SPLIT)}(?![A-Za-z0-9])")
    chosen = [path for path in tables if word.search(inside[path].as_posix())]
    if split and not chosen:
        names = ", ".join(inside[path].as_posix() for path in tables[:5])
        raise FewstepError(
            f"{label}: no file of the split {split!r}; there are {names}", code="missing-file"
        )
    return chosen or tables
