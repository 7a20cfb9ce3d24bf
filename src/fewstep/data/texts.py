"""Many texts in little memory, and where each of them stands."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

_IN_MEMORY = 16 * 2**20  # bytes of text from which a temporary file holds them
_KEY = 16  # bytes of a fingerprint
_BLOCK = 4096  # texts read at a time by a walk through all of them


class Index:
    """Finds the number of a text by a 128-bit fingerprint of it; 40 bytes a text."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._keys = bytearray()
        self._sorted: tuple[NDArray[np.bytes_], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._keys) // _KEY

    def append(self, text: str) -> None:
        """Gives a text the next number."""
        self._sorted = None
        self._keys += _key(text)

    def numbers(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """The lowest number of each of some texts; -1 where it is not there."""
        keys, order = self._in_order()
        wanted = np.frombuffer(b"".join(map(_key, texts)), keys.dtype)
        if not len(keys):
            return np.full(len(wanted), -1)
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[place] == wanted, order[place], -1)

    def distinct(self) -> NDArray[np.int64]:
        """The lowest number of each text, ascending."""
        keys, order = self._in_order()
        new = np.ones(len(keys), dtype=bool)
        new[1:] = keys[1:] != keys[:-1]
        return np.sort(order[new])

    def _in_order(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """The fingerprints, sorted, and the number that each belongs to."""
        if self._sorted is None:
            keys = np.frombuffer(bytes(self._keys), f"S{_KEY}")
            order = np.argsort(keys, kind="stable")  # of equal ones, the lowest number first
            self._sorted = keys[order], order
        return self._sorted


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_KEY).digest()


class Texts(Sequence[str]):
    """Texts in order; beyond some megabytes a temporary file without a name holds them."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Takes texts; `append` adds more.

        Raises:
            OSError: There is no room for the temporary file.
        """
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - goes with this
        self._ends = array("q", [0])
        self._index = Index()
        self._sha = hashlib.sha256()
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a text, before anything is read."""
        raw = text.encode()
        self._sha.update(b"\0" + raw if len(self) else raw)
        self._index.append(text)
        self._file.write(raw)
        self._ends.append(self._ends[-1] + len(raw))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """A text, or a list of some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return next(self._read(number, number + 1))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self._read(start, min(start + _BLOCK, len(self)))

    @cached_property
    def distinct(self) -> Sequence[str]:
        """Each text once, in order."""
        numbers = self._index.distinct()
        return self if len(numbers) == len(self) else _Chosen(self, numbers)

    @property
    def digest(self) -> str:
        """SHA-256 of the texts with NUL between them."""
        return self._sha.hexdigest()

    def numbers(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """The lowest number of each of some texts; -1 where it is not there."""
        return self._index.numbers(texts)

    def _read(self, start: int, stop: int) -> Iterator[str]:
        ends = self._ends[start : stop + 1]
        self._file.seek(ends[0])
        raw = self._file.read(ends[-1] - ends[0])
        for one, other in itertools.pairwise(ends):
            yield raw[one - ends[0] : other - ends[0]].decode()


class _Chosen(Sequence[str]):
    """Some of many texts, by number."""

    def __init__(self, texts: Texts, numbers: NDArray[np.int64]) -> None:
        self._texts = texts
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._texts[int(number)] for number in self._numbers[index]]
        return self._texts[int(self._numbers[index])]
