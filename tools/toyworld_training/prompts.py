"""Prompts of the tiny world drawn from its grammar, and which of them are kept from training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from fewstep.toyworld.scenes import BACKGROUNDS, Prompt, choice, draw_other, draw_spec

SHARE_HELD_OUT = 8  # one prompt in so many never enters training


def is_held_out(prompt: Prompt) -> bool:
    """Whether the prompt is kept from training, decided by a hash of its caption."""
    digest = hashlib.blake2b(str(prompt).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % SHARE_HELD_OUT == 0


def draw_prompt(rng: np.random.Generator) -> Prompt:
    """One prompt from the caption grammar: attributes are mentioned or left free at random."""
    things = [draw_spec(rng, 0.35)]
    if rng.random() < 0.4:
        things.append(draw_other(rng, 0.2, things[0]))
    background = choice(rng, tuple(BACKGROUNDS)) if rng.random() < 0.4 else None
    return Prompt(tuple(things), background)


def prompts(seed: int, *, held_out: bool) -> Iterator[Prompt]:
    """An endless stream of prompts from one side of the split, with repetitions."""
    rng = np.random.default_rng(seed)
    while True:
        prompt = draw_prompt(rng)
        if is_held_out(prompt) == held_out:
            yield prompt


def distinct_prompts(count: int, seed: int, *, held_out: bool) -> list[Prompt]:
    """The first `count` different prompts of `prompts`."""
    distinct: dict[Prompt, None] = {}
    stream = prompts(seed, held_out=held_out)
    while len(distinct) < count:
        distinct[next(stream)] = None
    return list(distinct)
