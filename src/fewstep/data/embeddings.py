"""Prompt embeddings on disk: a folder of safetensors shards that are memory-mapped.

``index.json`` holds the model and the settings that made the embeddings, and the SHA-256 of every
shard; those written since it was are lines of a journal beside it, so that a shard costs the same
however many there are. A shard carries its prompts in its header, is written whole or not at all,
and never changes, so that a folder stays usable when the process that writes to it is killed.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save

from fewstep import models
from fewstep.core.types import Conditioning
from fewstep.data.shards import FILES, About, IndexContent, about_of, layout_of
from fewstep.data.texts import Index, Texts
from fewstep.models import hub
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import (
    append_line,
    damaged_files,
    digest_text,
    read_json,
    regular_file,
    remove,
    write_bytes,
    write_text,
)
from fewstep.utils.pretrained import Address

FORMAT = 1
INDEX = "index.json"
_JOURNAL = "index-{}.jsonl"
_NULL = "null"

Key = Mapping[str, Any]
"""What embeddings depend on besides the prompt: model, family, dtype, options."""


def key_of(model: Address, *, dtype: str, options: Mapping[str, Any]) -> Key:
    """The key of a model and its settings.

    Args:
        model: Folder, hub id or single file; LoRAs are part of the key.
        dtype: Name of the dtype of its weights.
        options: Options of the model family; defaults are filled in.

    Raises:
        FewstepError: There is no such model, or it is not supported.
    """
    family = models.family_of(model)
    models.check_options(family, options)
    settings = {
        name: parameter.default
        for name, parameter in inspect.signature(family).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    all_options = json.loads(json.dumps({**settings, **options}, default=str))
    hub.download(model, family.pipeline_class)
    digest = models.fingerprint(model)  # LoRAs may change text encoders, too
    return {"model": digest, "family": family.name, "dtype": dtype, "options": all_options}


class Embeddings:
    """A folder of embeddings; use `open` or `create`.

    Attributes:
        folder: The folder.
        key: The model and settings that made them.
        damaged: Files known to be missing, truncated or changed; they are left out everywhere.
    """

    def __init__(
        self, folder: Path, key: Key, files: Mapping[str, str], *, writer: int = 0
    ) -> None:
        """Reads the header of every shard.

        Args:
            folder: The folder.
            key: What made them.
            files: File name -> SHA-256.
            writer: Number of this process, where several write to one folder.
        """
        self.folder = folder
        self.key = key
        self._journal = folder / _JOURNAL.format(writer)
        self.damaged: list[str] = []
        self._files = dict(files)
        self._open: dict[str, Any] = {}
        self._index = Index()
        self._starts: list[int] = []
        self._overlong = bytearray()
        for file in files:
            self._read_header(file)

    @staticmethod
    def open(folder: Path, *, writer: int = 0) -> Embeddings:
        """Opens the embeddings in a folder; arguments are those of the constructor.

        Raises:
            FewstepError: There are none, or of another format.
        """
        file = folder / INDEX
        content = read_json(file)
        if content is None:
            what = "is not readable" if os.path.lexists(file) else "is not there"
            raise FewstepError(
                f"{file}: {what}: no embeddings; make new ones with fewstep encode", code="damaged"
            )
        if content.get("format") != FORMAT:
            raise FewstepError(
                f"{file}: embeddings of another version of fewstep; make new ones", code="version"
            )
        try:
            IndexContent.model_validate(content, strict=True)
        except ValidationError as error:
            place = " ".join(map(str, error.errors()[0]["loc"]))
            raise FewstepError(
                f"{file}: {place}: not what fewstep encode writes there; make new ones with it",
                code="damaged",
            ) from error
        files = content["files"] | _journalled(folder)
        return Embeddings(folder, content["key"], files, writer=writer)

    @staticmethod
    def create(folder: Path, key: Key) -> Embeddings:
        """Makes a folder without embeddings yet.

        Raises:
            FewstepError: The folder holds something else.
        """
        if folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
            raise FewstepError(
                f"{folder}: not empty, and no embeddings in it; give another --out", code="exists"
            )
        embeddings = Embeddings(folder, key, {})
        embeddings.seal()
        return embeddings

    @staticmethod
    def begin(folder: Path, key: Key, shards: Iterable[Sequence[str]]) -> None:
        """Makes a folder ready for some shards: of what is there, those stay that are sound."""
        index = read_json(folder / INDEX)
        if index is None or index.get("key") != key:
            if index is not None:
                remove(folder)
            Embeddings.create(folder, key)
        embeddings = Embeddings.open(folder)
        damaged = set(embeddings.verify())
        others = embeddings._files.keys() - {_file(_NULL), *map(_shard, shards)}
        embeddings._forget(sorted(others))
        embeddings.seal()
        for file in others | damaged:
            (folder / file).unlink(missing_ok=True)

    # ----------------------------------------------------------------------------- what is there

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._index)

    @property
    def has_null(self) -> bool:
        """Whether the encoded empty prompt is there."""
        return _file(_NULL) in self._open

    @property
    def nbytes(self) -> int:
        """Size of the shards in bytes."""
        return sum((self.folder / file).stat().st_size for file in self._open)

    def holds(self, prompts: Sequence[str]) -> bool:
        """Whether there is a shard of exactly these prompts."""
        return _shard(prompts) in self._open

    def missing(self, prompts: Iterable[str]) -> Texts:
        """The prompts without an embedding, each once, in order."""
        return Texts(
            prompt
            for part in _parts(Texts(prompts).distinct)
            for prompt, number in zip(part, self._index.numbers(part), strict=True)
            if number < 0
        )

    def overlong(self, prompts: Iterable[str]) -> int:
        """How many of some prompts were longer than the model reads."""
        return sum(self._overlong[number] for number in self._numbers(prompts))

    def refuse_other(self, key: Key) -> None:
        """Refuses embeddings of another model or of other settings.

        Raises:
            FewstepError: The keys differ; the message says in what.
        """
        theirs, mine = _flat(self.key), _flat(key)
        for name in sorted(theirs.keys() | mine.keys()):
            if theirs.get(name) != mine.get(name):
                raise FewstepError(
                    f"{self.folder}: these embeddings are not of this model and its settings: "
                    f"{name} is {theirs.get(name)} there and {mine.get(name)} here; "
                    "use another folder or encode again",
                    code="mismatch",
                )

    def verify(self, prompts: Iterable[str] | None = None) -> list[str]:
        """Checks the shards of some prompts (None: all shards) against their SHA-256.

        Returns:
            Names of the damaged files, whose prompts are missing from now on.
        """
        files = list(self._open) if prompts is None else self._holding(prompts)
        self._forget(damaged_files(self.folder, {file: self._files[file] for file in files}))
        return self.damaged

    def digest(self, prompts: Iterable[str]) -> str:
        """Fingerprint of the embeddings of some prompts."""
        return digest_text(*(self._files[file] for file in self._holding(prompts)))

    def _holding(self, prompts: Iterable[str]) -> list[str]:
        """The shards that hold some prompts, and that of the empty prompt."""
        files = list(self._open)
        places = np.searchsorted(self._starts, self._numbers(prompts), side="right") - 1
        held = {files[place] for place in np.unique(places)}
        return sorted(held | ({_file(_NULL)} & self._open.keys()))

    def _numbers(self, prompts: Iterable[str]) -> NDArray[np.int64]:
        """Numbers of those of some prompts that are there."""
        found = [self._index.numbers(part) for part in _parts(prompts)]
        numbers = np.concatenate([np.empty(0, np.int64), *found])
        return numbers[numbers >= 0]

    # ------------------------------------------------------------------------------- reading

    def read(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of N prompts, batch N, on the CPU; only their own bytes are read.

        Raises:
            FewstepError: There is no embedding of one of them, or it is not finite.
        """
        numbers = self._index.numbers(prompts)
        if (numbers < 0).any():
            lacking = prompts[int(np.argmax(numbers < 0))]
            raise FewstepError(f"{self.folder}: lacks the prompt {lacking!r}", code="missing-input")
        files = list(self._open)
        rows = []
        for number in numbers:
            shard = bisect_right(self._starts, number) - 1
            rows.append(self._row(files[shard], int(number) - self._starts[shard]))
        return Conditioning.cat(rows).counted()

    def null(self) -> Conditioning:
        """The encoded empty prompt, batch 1."""
        return self._row(_file(_NULL), 0)

    def _row(self, file: str, row: int) -> Conditioning:
        tensors = self._open[file]
        names = tensors.keys()
        cond = Conditioning({name: tensors.get_slice(name)[row : row + 1] for name in names})
        if wrong := cond.non_finite():
            raise FewstepError(
                f"{self.folder / file}: {wrong} of row {row} is not finite; delete the file, check "
                "the text encoders, and encode again",
                code="non-finite",
            )
        return cond

    # ------------------------------------------------------------------------------- writing

    def add(self, prompts: Sequence[str], cond: Conditioning, overlong: Sequence[bool]) -> None:
        """Writes a shard, then the line of the journal that lists it.

        Args:
            prompts: N prompts without an embedding yet.
            cond: Their embeddings, batch N.
            overlong: Whether each prompt is longer than the model reads.
        """
        rows = [row for row, flag in enumerate(overlong) if flag]
        about = {"prompts": list(prompts), "overlong": rows}
        self._add(_shard(prompts), cond, about)

    def add_null(self, cond: Conditioning) -> None:
        """Writes the encoded empty prompt."""
        self._add(_file(_NULL), cond, {"prompts": [], "overlong": []})

    def _add(self, file: str, cond: Conditioning, about: dict[str, Any]) -> None:
        # One metadata key: safetensors writes several in any order, and bytes must be reproducible.
        tensors = {name: tensor.contiguous() for name, tensor in cond.to("cpu").tensors.items()}
        content = save(tensors, metadata={"about": json.dumps(about)})
        write_bytes(self.folder / file, content, sync=True)
        self._files[file] = hashlib.sha256(content).hexdigest()
        append_line(self._journal, json.dumps({file: self._files[file]}))
        self._read_header(file)

    def seal(self) -> None:
        """Writes all that is known to be there to the index; nobody else may be writing."""
        files = dict(sorted(self._files.items()))  # whoever wrote them, and when
        content = {"format": FORMAT, "key": self.key, "files": files}
        write_text(self.folder / INDEX, json.dumps(content, indent=1) + "\n", sync=True)
        for journal in self.folder.glob(_JOURNAL.format("*")):
            journal.unlink()

    def _read_header(self, file: str) -> None:
        try:
            tensors: Any = safetensors.safe_open(regular_file(self.folder / file), framework="pt")
            about = about_of(tensors)
            first = next(iter(self._open.values()), tensors)
            if layout_of(tensors, max(len(about.prompts), 1)) != layout_of(first):
                raise ValueError("other tensors than in the first file")
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError):
            self._forget([file])
        else:
            self._open[file] = tensors
            self._enter(about)

    def _enter(self, about: About) -> None:
        """Numbers the prompts of a shard."""
        flags = bytearray(len(about.prompts))
        for row in about.overlong:
            flags[row] = 1
        self._starts.append(len(self._index))
        for prompt in about.prompts:
            self._index.append(prompt)
        self._overlong += flags

    def _forget(self, files: Sequence[str]) -> None:
        """Leaves damaged files out of everything, and out of the index once `seal` writes it."""
        self.damaged += files
        for file in files:
            self._files.pop(file)
        if any(self._open.pop(file, None) for file in files):
            self._index, self._starts, self._overlong = Index(), [], bytearray()
            for tensors in self._open.values():
                self._enter(about_of(tensors))


def _parts(prompts: Iterable[str], size: int = 65_536) -> Iterator[list[str]]:
    """Some prompts at a time."""
    source = iter(prompts)
    while part := list(itertools.islice(source, size)):
        yield part


def _journalled(folder: Path) -> dict[str, str]:
    """Files that journals list; a line that was cut off is none, and its shard is made again."""
    found: dict[str, str] = {}
    for journal in sorted(folder.glob(_JOURNAL.format("*"))):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValidationError):
                found |= FILES.validate_json(line)
    return found


def _shard(prompts: Sequence[str]) -> str:
    return _file(f"prompts-{digest_text(*prompts)}")


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _flat(key: Key) -> dict[str, Any]:
    options = {f"option {name}": value for name, value in key["options"].items()}
    return {name: value for name, value in key.items() if name != "options"} | options
