"""Sources of prompts: text files, tables, folders of tables, data sets on the hub.

The files of a data set are read as they are, by pyarrow: those on the hub (.parquet, .jsonl, .csv)
and those that `datasets` writes with ``save_to_disk`` (.arrow). No code of a data set is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fewstep.config.data import BUILTIN, is_repo_id
from fewstep.data import textfiles
from fewstep.data.builtin import builtin_prompts
from fewstep.data.textfiles import COLUMNS, Row
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import regular_file
from fewstep.utils.resources import resolve

TABLES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv")
"""Files of a data set; in a folder with several kinds only the first of these is read."""
_DEFAULT_SPLIT = "train"
_MOST_FILES = 100_000


def read_rows(
    path: str | Path, *, column: str | None = None, split: str | None = None
) -> Iterator[tuple[str, int, str]]:
    """Every prompt as it is written, one after the other: none is kept.

    Args:
        path: A .txt file (one prompt a line), a .jsonl, .csv, .tsv, .parquet or .arrow file, a
            folder of such tables, the id of a data set on the hub, or ``builtin:NAME``.
        column: Which column or key holds the prompt; None takes the first one of `COLUMNS`.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.

    Yields:
        The file, the number of the line (or row) and the text, see `textfiles.Row`.

    Raises:
        FewstepError: Nothing there, an unknown kind, or a broken line; one line says where.
    """
    label, place = str(path), resolve(path)
    if label.startswith(BUILTIN):
        yield from ((label, number, text) for number, text in enumerate(builtin_prompts(label), 1))
        return
    if os.path.isdir(place) or (not os.path.lexists(place) and is_repo_id(label)):
        folder = place if os.path.isdir(place) else _fetched(label, split)
        files = {
            file: f"{label}/{file.relative_to(folder)}" for file in _tables_of(folder, label, split)
        }
    elif split is not None:
        raise FewstepError(f"{label}: one file has no splits; leave data.split out")
    else:
        files = {place: label}
    for file, name in files.items():
        for number, text in _rows(file, column, name):
            yield name, number, text


def _rows(file: Path, column: str | None, label: str) -> Iterator[Row]:
    reader = _READERS.get(file.suffix.lower())
    try:
        regular_file(file)
        if reader is None:
            raise FewstepError(
                f"{label}: prompts must be .txt, .jsonl, .csv, .tsv, .parquet or a folder of such; "
                "name the file by what is in it"
            )
        yield from reader(file, column, label)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FewstepError(
            f"{label}: cannot read the prompts: {reason}", code="no-access"
        ) from error


# ---------------------------------------------------------------------------------------- tables


def _parquet(file: Path, column: str | None, label: str) -> Iterator[Row]:
    _pyarrow(label)
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(file) as table:
            name = _column(table.schema_arrow.names, column, label)
            for batch in table.iter_batches(columns=[name]):
                yield batch.column(0)

    return _texts(batches(), "parquet", label)


def _arrow(file: Path, column: str | None, label: str) -> Iterator[Row]:
    arrow = _pyarrow(label)

    def batches() -> Iterator[Any]:
        with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as stream:
            name = _column(stream.schema.names, column, label)
            for batch in stream:
                yield batch.column(name)

    return _texts(batches(), "arrow", label)


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
    raise FewstepError(
        f"{label}: no column {textfiles.no_column(column, names)}", code="unknown-name"
    )


def _texts(columns: Iterator[Any], kind: str, label: str) -> Iterator[Row]:
    """The texts of a column, part by part.

    Raises:
        FewstepError: It holds no texts, or the file is not sound.
    """
    number = 0
    while True:
        try:
            part = next(columns, None)
            raw = [] if part is None else _bytes(part, label)
        except FewstepError:
            raise
        except Exception as error:  # pyarrow reads what may not be sound: whatever it raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FewstepError(
                f"{label}: not a sound {kind} file: {reason}", code="damaged"
            ) from error
        if part is None:
            return
        for text in raw:
            number += 1
            yield number, "" if text is None else text.decode("utf-8", "surrogateescape")


def _bytes(array: Any, label: str) -> list[bytes | None]:
    """Texts as bytes, since pyarrow does not check that they are UTF-8."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise FewstepError(f"{label}: holds {kind}, not text; name another with data.column")
    return list(array.cast(arrow.large_binary()).to_pylist())


_READERS: dict[str, Callable[[Path, str | None, str], Iterator[Row]]] = {
    **textfiles.READERS,
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
    files: list[Path] = []
    for at, inner, found in os.walk(folder):
        inner[:] = [name for name in inner if name[0] != "."]
        files += [Path(at, name) for name in found if name[0] != "."]
        if len(files) > _MOST_FILES:
            raise FewstepError(
                f"{label}: more than {_MOST_FILES:,} files in it; name the folder of the prompts"
            )
    inside = {path: path.relative_to(folder) for path in files}
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
