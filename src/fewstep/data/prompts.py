"""The prompts of a run: reading, order, and encoding with a cache."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewstep.core.types import Conditioning
from fewstep.data.sources import read_rows
from fewstep.data.textfiles import convert, is_unicode
from fewstep.data.texts import Texts
from fewstep.models.base import Backbone
from fewstep.utils.errors import FewstepError
from fewstep.utils.pace import Note, Pace, silent

MOST_CHARACTERS = 2**15
"""Characters of a prompt; text encoders read some thousands at most."""
_TOLERATED = 100
"""One in so many lines may be unusable: a stray one in a large file is left out, and counted."""
_LOOKED_AT = 4096
"""Prompts at most whose length in tokens is looked at."""
_OFTEN = 5
"""Words of the prompts that are named to show what they are about."""
_FILLERS = {"a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "the"}
_FILLERS |= {"that", "to", "with"}
ENTRY_BYTES = 2000
"""What an embedding in the cache takes besides its numbers."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order of their source.

    Attributes:
        texts: The prompts; duplicates stay and weigh a prompt.
        empty: Number of lines left out because nothing is on them.
        undecodable: Number of lines left out because they are no text, see `fault_of`.
    """

    texts: Texts
    empty: int = 0
    undecodable: int = 0

    @property
    def distinct(self) -> Sequence[str]:
        """Each prompt once, in order."""
        return self.texts.distinct

    @property
    def duplicates(self) -> int:
        """How many prompts repeat an earlier one."""
        return len(self.texts) - len(self.distinct)

    @property
    def digest(self) -> str:
        """Fingerprint of the texts and their order."""
        return self.texts.digest

    @property
    def sample(self) -> Sequence[str]:
        """The distinct prompts, or some thousands of them, evenly spread."""
        return self.distinct[:: -(-len(self.distinct) // _LOOKED_AT)]

    def describe(self, overlong: int = 0, looked_at: int | None = None) -> str:
        """One line, such as ``900 prompts (3 duplicate(s) kept, 1 empty line(s) left out)``.

        Args:
            overlong: How many of the distinct prompts are longer than the model reads.
            looked_at: How many of them were looked at for this; None: all.
        """
        some = looked_at is not None and looked_at < len(self.distinct)
        of = f"of {looked_at:,} looked at are " if some else ""
        notes = [
            (self.duplicates, "duplicate(s) kept"),
            (self.empty, "empty line(s) left out"),
            (self.undecodable, "line(s) left out that are no UTF-8 text"),
            (overlong, f"{of}longer than the model reads, cut"),
        ]
        details = ", ".join(f"{count} {what}" for count, what in notes if count)
        return f"{len(self.texts)} prompts" + (f" ({details})" if details else "")

    def distribution(self) -> str:
        """One line about the distinct prompts: their lengths, and the words that most of them hold.

        Of very many, some thousands are looked at.
        """
        words: Counter[str] = Counter()
        sample = self.sample
        for text in sample:
            words.update(
                {word for word in re.findall(r"\w+", text.lower()) if word not in _FILLERS}
            )
        lengths = sorted(len(text.split()) for text in sample)
        characters = [len(text) for text in sample]
        often = (f"{word!r} {n / len(sample):.0%}" for word, n in words.most_common(_OFTEN))
        return (
            f"{lengths[0]} to {lengths[-1]} words a prompt, half of them up to "
            f"{lengths[(len(lengths) - 1) // 2]}; {min(characters)} to {max(characters)} "
            f"characters; most frequent: {', '.join(often) or 'no words'}"
        )


def read_prompts(
    source: str | Path | Sequence[str],
    *,
    column: str | None = None,
    split: str | None = None,
    note: Note = silent,
) -> Prompts:
    """Prompts of a list, or of a file, a folder or a data set, see `sources.read_rows`.

    Args:
        source: Where they are, or the prompts themselves.
        column: Which column or key holds them; None takes the first one of `textfiles.COLUMNS`.
        split: Which part of a folder or data set; None takes ``train`` where it is there, else all.
        note: Called with how far it is, where it takes long.

    Raises:
        FewstepError: No such file, an unknown kind, a broken line, more than one line in a hundred
            that is no text, or no prompt at all.
    """
    if not isinstance(source, str | Path):
        return as_prompts(source, "the list of prompts")
    texts, empty, unusable, first = Texts(), 0, 0, ""
    pace = Pace(note)
    for label, number, raw in read_rows(source, column=column, split=split):
        text = normalized(raw)
        if fault := fault_of(text):
            unusable += 1
            unit = "row" if label.lower().endswith((".parquet", ".arrow")) else "line"
            first = first or f"{label}, {unit} {number}: {fault}{convert(text, label)}"
        elif is_blank(text):
            empty += 1
        else:
            texts.append(text)
        pace.say(lambda: f"{source}: {len(texts):,} prompts read")
    if unusable * _TOLERATED > len(texts) + unusable:
        raise FewstepError(
            f"{first} ({unusable:,} of {len(texts) + unusable:,} lines are no text; one in "
            f"{_TOLERATED} would be left out)"
        )
    if not texts:
        raise FewstepError(f"{source}: there is no prompt in it", code="missing-input")
    return Prompts(texts, empty, unusable)


def as_prompts(written: Iterable[str], where: str) -> Prompts:
    """Prompts that somebody wrote out; empty ones are left out.

    Raises:
        FewstepError: One is no text, or there is none.
    """
    texts, empty = Texts(), 0
    for number, text in enumerate(written, 1):
        if fault := fault_of(text):
            raise FewstepError(f"{where}, number {number}: {fault}")
        if is_blank(text):
            empty += 1
        else:
            texts.append(text)
    if not texts:
        raise FewstepError(f"{where}: there is no prompt in it", code="missing-input")
    return Prompts(texts, empty)


def normalized(text: str) -> str:
    """A prompt with single spaces between its words, and none around them."""
    return " ".join(text.split())


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return not any(character.isprintable() and character != " " for character in text)


def fault_of(text: str) -> str | None:
    """Why a text cannot be a prompt, if so: no Unicode, control characters, or absurdly long."""
    if len(text) > MOST_CHARACTERS:
        return f"a prompt of {len(text):,} characters; {MOST_CHARACTERS:,} at most"
    if text.isprintable():
        return None
    if not is_unicode(text):
        return "bytes that are not UTF-8, or half a character"
    for character in text:
        if unicodedata.category(character) == "Cc" and not character.isspace():
            return f"holds the control character U+{ord(character):04X}; remove it"
    return None


class Encoder(Protocol):
    """What turns prompts into conditioning for training and previews."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of N prompts, batch N, on the model's device."""

    def prefetch(self, batches: Sequence[Sequence[str]]) -> None:
        """Tells what `encode` will be asked for next, to be read while the device is at work."""

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

    def prefetch(self, batches: Sequence[Sequence[str]]) -> None:
        """Does nothing: text encoders would compete with the network for the device."""

    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times; it is encoded once."""
        return self._backbone.null(batch)

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""
        return sum(self._backbone.overlong(prompts))

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
    return ENTRY_BYTES + sum(tensor.nbytes for tensor in cond.tensors.values())
