"""The prompts of a run: reading, order, and encoding with a cache."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from fewstep.core.noise import Draws
from fewstep.core.types import Conditioning
from fewstep.data.sources import read_texts
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError

ENCODE_BATCH = 64
"""Batch size of `CachingEncoder.encode_all`."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their source.

    Attributes:
        texts: The prompts; duplicates stay and weigh a prompt.
        duplicates: How many of them repeat an earlier one.
        empty: Number of lines left out because they were empty.
        undecodable: Number of lines left out because they are not UTF-8.
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

    def describe(self, overlong: int = 0) -> str:
        """One line, such as ``900 prompts (3 duplicate(s) kept, 1 empty line(s) left out)``.

        Args:
            overlong: How many of the distinct prompts are longer than the model reads.
        """
        notes = [
            (self.duplicates, "duplicate(s) kept"),
            (self.empty, "empty line(s) left out"),
            (self.undecodable, "line(s) left out that are not UTF-8"),
            (overlong, "longer than the model reads, cut"),
        ]
        details = ", ".join(f"{count} {what}" for count, what in notes if count)
        return f"{len(self.texts)} prompts" + (f" ({details})" if details else "")


def read_prompts(
    source: str | Path | Sequence[str], *, column: str | None = None, split: str | None = None
) -> Prompts:
    """Prompts of a list, or of a file, a folder or a data set, see `sources.read_texts`.

    Args:
        source: Where they are, or the prompts themselves.
        column: Which column or key holds them; None takes the first one of `sources.COLUMNS`.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.

    Raises:
        FewstepError: No such file, an unknown kind, a broken line, or no prompt at all.
    """
    if isinstance(source, str | Path):
        where, raw = str(source), list(read_texts(source, column=column, split=split))
        decoded = [normalized(text) for text in raw if text is not None]
        undecodable = len(raw) - len(decoded)
    else:
        where, decoded, undecodable = "the list of prompts", list(source), 0
    texts = tuple(text for text in decoded if text.strip())
    if not texts:
        raise FewstepError(f"{where}: there is no prompt in it", code="missing-input")
    repeats = sum(count - 1 for count in Counter(texts).values())
    return Prompts(texts, repeats, len(decoded) - len(texts), undecodable)


def normalized(text: str) -> str:
    """A prompt with single spaces between its words, and none around them."""
    return " ".join(text.split())


class Order:
    """The order of the training prompts: every epoch is a new shuffle of all of them.

    The shuffle is a function of (seed, epoch) alone, so that a position in the endless sequence of
    epochs is all that a checkpoint must hold.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        """Takes the prompts of an epoch; duplicates count as often as they stand there."""
        self._texts = texts
        self._seed = seed
        self._epoch = (-1, torch.empty(0))

    def take(self, cursor: int, count: int) -> list[str]:
        """The prompts at positions cursor .. cursor + count - 1 of the sequence of epochs."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> str:
        epoch, index = divmod(position, len(self._texts))
        if self._epoch[0] != epoch:
            shuffle = Draws(self._seed, epoch).shared("prompts/order")
            self._epoch = (epoch, torch.randperm(len(self._texts), generator=shuffle))
        return self._texts[int(self._epoch[1][index])]


class Encoder(Protocol):
    """What turns prompts into conditioning for training and previews."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of N prompts, batch N, on the model's device."""

    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times."""

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""


class CachingEncoder:
    """Encodes prompts when they are needed, with a cache of the most recently used ones.

    Prompts are encoded one at a time: batching changes rounding, and an embedding must not depend
    on which other prompts happened to be missing from the cache.
    """

    def __init__(self, backbone: Backbone, *, cache_bytes: float) -> None:
        """Encodes nothing yet.

        Args:
            backbone: The model with its text encoders.
            cache_bytes: Bound on the size of the cached embeddings, in bytes.
        """
        self._backbone = backbone
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._size = 0

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of N prompts, batch N, on the model's device."""
        parts = [self._cached(prompt) for prompt in prompts]
        return Conditioning.cat(parts).to(self._backbone.device)

    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times; it is encoded once."""
        return self._backbone.null(batch)

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""
        return sum(self._backbone.overlong(prompts))

    def encode_all(self, prompts: Sequence[str]) -> None:
        """Encodes all prompts of a run, whatever their size, and frees the text encoders.

        Batches of `ENCODE_BATCH` are safe here: they depend on the list of prompts alone.
        """
        self._cache_bytes = float("inf")
        distinct = list(dict.fromkeys(prompts))
        for start in range(0, len(distinct), ENCODE_BATCH):
            part = distinct[start : start + ENCODE_BATCH]
            encoded = self._backbone.encode(part).to("cpu")
            for i, prompt in enumerate(part):
                self._cache[prompt] = encoded.select(slice(i, i + 1))
        self._backbone.free_encoders()

    def _cached(self, prompt: str) -> Conditioning:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        encoded = self._backbone.encode([prompt]).to("cpu")
        self._cache[prompt] = encoded
        self._size += _bytes(encoded)
        while self._size > self._cache_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._size -= _bytes(dropped)
        return encoded


def _bytes(cond: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in cond.tensors.values())
