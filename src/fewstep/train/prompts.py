"""The prompts of a run: read once, shuffled anew each epoch, encoded once while they fit."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fewstep.backbones.base import Backbone
from fewstep.errors import FewstepError
from fewstep.randomness import Draws
from fewstep.records import Conditioning
from fewstep.resources import resolve

_AHEAD = 64  # prompts encoded in one go
COLUMNS = ("prompt", "caption", "text")
"""Keys of a .jsonl line and columns of a .csv that hold the prompt; the first one there counts."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their file, and what was odd about it.

    Attributes:
        texts: The prompts; duplicates stay, they are a way to weigh.
        duplicates: How many of them repeat an earlier one.
        empty: Lines left out because nothing was in them.
        undecodable: Lines left out because they are not UTF-8.
    """

    texts: tuple[str, ...]
    duplicates: int = 0
    empty: int = 0
    undecodable: int = 0

    @property
    def distinct(self) -> list[str]:
        """Each prompt once, in order."""
        return list(dict.fromkeys(self.texts))

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the texts and their order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def describe(self) -> str:
        """One line, such as ``900 prompts (3 duplicates kept, 1 empty line left out)``."""
        notes = [
            (self.duplicates, "duplicate(s) kept"),
            (self.empty, "empty line(s) left out"),
            (self.undecodable, "line(s) left out that are not UTF-8"),
        ]
        odd = ", ".join(f"{count} {what}" for count, what in notes if count)
        return f"{len(self.texts)} prompts" + (f" ({odd})" if odd else "")


def read_prompts(path: str | Path) -> Prompts:
    """Prompts of a .txt (one a line), .jsonl or .csv file (see `COLUMNS`).

    Raises:
        FewstepError: No such file, an unknown kind, a broken line, or no prompt at all.
    """
    file = resolve(path)
    if file.suffix not in _READERS:
        raise FewstepError(f"{path}: prompts must be .txt, .jsonl or .csv")
    try:
        raw = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise FewstepError(f"{path}: cannot read the prompts: {error.strerror}") from error
    lines, undecodable = [], 0
    for number, line in enumerate(raw, 1):
        try:
            lines.append((number, line.decode("utf-8")))
        except UnicodeDecodeError:
            undecodable += 1
    found = [" ".join(text.split()) for text in _READERS[file.suffix](lines, str(path))]
    texts = tuple(text for text in found if text)
    if not texts:
        raise FewstepError(f"{path}: there is no prompt in it")
    repeats = sum(count - 1 for count in Counter(texts).values())
    return Prompts(texts, repeats, len(found) - len(texts), undecodable)


Lines = list[tuple[int, str]]


def _plain(lines: Lines, path: str) -> Iterator[str]:
    return (text for _, text in lines)


def _jsonl(lines: Lines, path: str) -> Iterator[str]:
    for number, line in lines:
        if not line.strip():
            yield ""
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FewstepError(f"{path}, line {number}: not JSON: {error.msg}") from error
        yield record if isinstance(record, str) else _field(record, f"{path}, line {number}")


def _csv(lines: Lines, path: str) -> Iterator[str]:
    rows = csv.DictReader(text for _, text in lines)
    for row in rows:
        yield _field(row, f"{path}, line {rows.line_num}")


def _field(record: object, where: str) -> str:
    values = record if isinstance(record, Mapping) else {}
    for key in COLUMNS:
        if isinstance(values.get(key), str):
            return str(values[key])
    raise FewstepError(f"{where}: no text under {', '.join(COLUMNS)}")


_READERS: dict[str, Callable[[Lines, str], Iterator[str]]] = {
    ".txt": _plain,
    ".jsonl": _jsonl,
    ".csv": _csv,
}


class Order:
    """Which prompts a step takes: a new shuffle each epoch, a function of (seed, epoch) alone."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        """Nothing is drawn yet."""
        self._texts = texts
        self._seed = seed
        self._epoch = (-1, torch.empty(0))

    def take(self, cursor: int, count: int) -> list[str]:
        """Prompts number cursor .. cursor + count - 1 of the endless shuffled sequence."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> str:
        epoch, place = divmod(position, len(self._texts))
        if self._epoch[0] != epoch:
            shuffle = Draws(self._seed, epoch).shared("prompts/order")
            self._epoch = (epoch, torch.randperm(len(self._texts), generator=shuffle))
        return self._texts[int(self._epoch[1][place])]


class Encoder:
    """Encoded prompts, kept in a cache of bounded size; the least recently used go first.

    Prompts are encoded one at a time: what a prompt becomes must not depend, not even in the last
    bit, on which others happened to be missing from the cache.
    """

    def __init__(self, backbone: Backbone, *, cache_bytes: float) -> None:
        """Nothing is encoded yet."""
        self._backbone = backbone
        self._bound = cache_bytes
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._size = 0

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of some prompts, on the backbone's device."""
        parts = [self._one(prompt) for prompt in prompts]
        return Conditioning.cat(parts).to(self._backbone.device)

    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times; the backbone encodes it once."""
        return self._backbone.null(batch)

    def encode_all(self, prompts: Sequence[str]) -> None:
        """Encode all that will ever be asked for, without bound, and drop the text encoders.

        Many at a time: who is encoded with whom depends on the list alone.
        """
        self._bound = float("inf")
        distinct = list(dict.fromkeys(prompts))
        for start in range(0, len(distinct), _AHEAD):
            part = distinct[start : start + _AHEAD]
            encoded = self._backbone.encode(part).to("cpu")
            for i, prompt in enumerate(part):
                self._kept[prompt] = encoded.select(slice(i, i + 1))
        self._backbone.free_encoders()

    def _one(self, prompt: str) -> Conditioning:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        encoded = self._backbone.encode([prompt]).to("cpu")
        self._kept[prompt] = encoded
        self._size += _bytes(encoded)
        while self._size > self._bound and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._size -= _bytes(dropped)
        return encoded


def _bytes(cond: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in cond.tensors.values())
