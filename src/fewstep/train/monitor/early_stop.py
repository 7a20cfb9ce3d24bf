"""How long ago a run's best preview was: what ends it early, and what a page about it shows."""

from __future__ import annotations

from collections.abc import Mapping


def since_best(scores: Mapping[int, float], step: int, every: int) -> tuple[int, int]:
    """The step of the best preview, and the number of previews after it that were no better.

    Args:
        scores: Preview score by step, at least one, in order; higher is better. Previews of a run
            that was not healthy are left out, and no better ones.
        step: Finished iterations.
        every: Iterations between previews.
    """
    best = max(scores, key=lambda step: scores[step])
    return best, step // every - best // every
