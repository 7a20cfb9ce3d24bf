"""The order of the training prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fewstep.core.noise import Draws

MOST_DRAWN = 2**22
"""Prompts up to which a shuffle is drawn as a whole: 34 MB, a tenth of a second."""
_ROUNDS = 6
_WORD = 2**64 - 1


class Order:
    """The order of the training prompts: every epoch is a new shuffle of all of them.

    The shuffle is a function of (seed, epoch) alone, so that a position in the endless sequence of
    epochs is all that a checkpoint must hold.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        """Takes the prompts of an epoch; duplicates count as often as they stand there."""
        self._texts = texts
        self._seed = seed
        self._epoch = -1
        self._place: Callable[[int], int] = int

    def take(self, cursor: int, count: int) -> list[str]:
        """The prompts at positions cursor .. cursor + count - 1 of the sequence of epochs."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> str:
        epoch, index = divmod(position, len(self._texts))
        if self._epoch != epoch:
            shuffle = Draws(self._seed, epoch).shared("prompts/order")
            self._epoch, self._place = epoch, permutation(len(self._texts), shuffle)
        return self._texts[self._place(index)]


def permutation(count: int, generator: torch.Generator) -> Callable[[int], int]:
    """A random permutation of 0..count-1 as a function.

    Of more than `MOST_DRAWN` numbers nothing is kept: a Feistel network permutes the numbers of
    twice as many bits as half of them has, and is applied until the result is below `count` (cycle
    walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    if count <= MOST_DRAWN:
        drawn = torch.randperm(count, generator=generator)
        return lambda index: int(drawn[index])
    keys = torch.randint(2**62, (_ROUNDS,), generator=generator).tolist()
    half = -(-(count - 1).bit_length() // 2)
    mask = 2**half - 1

    def place(index: int) -> int:
        while True:
            for key in keys:
                left, right = index >> half, index & mask
                index = right << half | (left ^ _mixed(right ^ key) & mask)
            if index < count:
                return index

    return place


def _mixed(value: int) -> int:
    """Bits that each depend on all of a value's: the finalizer of SplitMix64."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
