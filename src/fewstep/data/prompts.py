"""The prompts of a run: read once, shuffled anew each epoch, encoded once while they fit."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fewstep.core.noise import Draws
from fewstep.core.types import Conditioning
from fewstep.data.sources import cells
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError

AHEAD = 64
"""Prompts that `Encoder.encode_all` encodes in one go."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their source, and what was odd about it.

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
        odd = ", ".join(f"{count} {what}" for count, what in notes if count)
        return f"{len(self.texts)} prompts" + (f" ({odd})" if odd else "")


def read_prompts(
    source: str | Path | Sequence[str], *, column: str | None = None, split: str | None = None
) -> Prompts:
    """Prompts of a list, or of a file, a folder or a data set, see `sources.cells`.

    Args:
        source: Where they are, or the prompts themselves.
        column: Which column or key holds them; None takes the first one of `sources.COLUMNS`.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.

    Raises:
        FewstepError: No such file, an unknown kind, a broken line, or no prompt at all.
    """
    if isinstance(source, str | Path):
        where, found = str(source), list(cells(source, column=column, split=split))
        tidy = [" ".join(text.split()) for text in found if text is not None]
        undecodable = len(found) - len(tidy)
    else:
        where, tidy, undecodable = "the list of prompts", list(source), 0
    texts = tuple(text for text in tidy if text.strip())
    if not texts:
        raise FewstepError(f"{where}: there is no prompt in it", code="missing-input")
    repeats = sum(count - 1 for count in Counter(texts).values())
    return Prompts(texts, repeats, len(tidy) - len(texts), undecodable)


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

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""
        return sum(self._backbone.overlong(prompts))

    def encode_all(self, prompts: Sequence[str]) -> None:
        """Encode all that will ever be asked for, without bound, and drop the text encoders.

        Many at a time: who is encoded with whom depends on the list alone.
        """
        self._bound = float("inf")
        distinct = list(dict.fromkeys(prompts))
        for start in range(0, len(distinct), AHEAD):
            part = distinct[start : start + AHEAD]
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
