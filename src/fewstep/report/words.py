"""What the figures of a run mean, in words for people who do not know what to look for.

Told are the verdicts of `train.monitor.divergence`, and before those fall, what points that way:
bounds nearer by, chosen between what sound runs reach and what is judged as unhealthy
(docs/notebook/2026-11-26-runs-that-diverge.md). They are hints, and nothing depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fewstep.train.monitor.divergence import ADVICE, Verdict
from fewstep.train.monitor.early_stop import since_best

LAGS = 2.2
"""Fake teacher's loss over the teacher's on the student's samples, geometric mean; 1 is in step."""
WIDE, NARROW = 1.4, 0.7
"""Standard deviation of the latents to the teacher's."""
OFF = 0.2
"""Mean of the latents from the teacher's, in standard deviations."""
BRIGHTER = 0.06
"""Of the student's pictures from the teacher's, median of the prompts; black to white is 1."""
_FAKE, _TRUE = "health/fake_teacher_loss@", "health/teacher_loss@"


class Word(NamedTuple):
    """One observation.

    Attributes:
        level: `good`, `warn` or `bad`.
        what: What is seen.
        why: What it means, and what to do.
    """

    level: str
    what: str
    why: str


def words(
    rows: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    *,
    brightness: float | None = None,
    every: int = 1,
) -> list[Word]:
    """What stands out in a run's figures, the worst first; never empty.

    Args:
        rows: Those of metrics.jsonl, in order.
        verdict: On them, see `Divergence.see`.
        brightness: Of the newest preview: the student's less the teacher's, black to white is 1.
        every: Iterations between previews.
    """
    measured = (row for row in reversed(rows) if any(name.startswith("health/") for name in row))
    health: Mapping[str, float] = next(measured, {})
    if not rows or rows[-1]["step"] == 0:
        return [Word("good", "Nothing to judge yet", "the first figures come with the first steps")]
    found = []
    if verdict.reason:
        level = "bad" if verdict.lost else "warn"
        found.append(Word(level, "Training comes apart", f"{verdict.reason}; {ADVICE}"))
    else:
        found += _hints(health)
    if brightness is not None and abs(brightness) > BRIGHTER:
        found.append(_brightness(brightness))
    found += _previews(rows, every)
    if not any(word.level != "good" for word in found):
        why = "latents stay near the teacher's in mean and spread, and the fake teacher keeps up"
        if not health.get("step"):
            why = "health was not measured yet since the start"
        found.insert(0, Word("good", "Nothing stands out", why))
    return found


def _hints(health: Mapping[str, float]) -> list[Word]:
    """What the last health figures point to, before they are out of bounds."""
    found = []
    lag, spread = lag_of(health), health.get("health/std_ratio", 1.0)
    if lag is not None and lag > LAGS:
        what = (
            f"The fake teacher lags: {lag:.2g} times the teacher's error on what the student draws"
        )
        why = "what it tells the student is out of date; more fake_teacher.updates, or a lower rate"
        found.append(Word("warn", what, f"{why} of the student (student.optimizer.lr)"))
    if spread > WIDE:
        what = f"Latents spread {spread:.2f} times as widely as the teacher's"
        why = "harsh contrast and colours: guidance too strong (alpha of ca), or past its best"
        found.append(Word("warn", what, why))
    if spread < NARROW:
        what = f"Latents spread only {spread:.2f} times as widely as the teacher's"
        why = "washed-out pictures: guidance too weak (alpha of ca), or it has only begun"
        found.append(Word("warn", what, why))
    if abs(drift := health.get("health/mean_drift", 0.0)) > OFF:
        what = f"Latents drift: their mean is {drift:+.2f} standard deviations from the teacher's"
        why = "a cast of brightness or colour: guidance too strong (alpha of ca), or rates too high"
        found.append(Word("warn", what, why))
    return found


def lag_of(health: Mapping[str, float]) -> float | None:
    """How much worse the fake teacher fits the student's samples than the teacher does, >= 0."""
    pairs = [
        (health[name], health[_TRUE + name.removeprefix(_FAKE)])
        for name in health
        if name.startswith(_FAKE) and _TRUE + name.removeprefix(_FAKE) in health
    ]
    ratios = [math.log(fake / true) for fake, true in pairs if 0 < fake < math.inf and true > 0]
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def _brightness(brightness: float) -> Word:
    word = "brighter" if brightness > 0 else "darker"
    what = f"Pictures drift {word}: by {abs(brightness):.0%} of the range from black to white"
    return Word("warn", what, "than the teacher's: guidance too strong, or training past its best")


def _previews(rows: Sequence[Mapping[str, Any]], every: int) -> list[Word]:
    """How the preview score goes."""
    scores = {row["step"]: row["preview/score"] for row in rows if "preview/score" in row}
    scores.pop(0, None)  # nothing was learned yet
    if not scores:
        return []
    best, since = since_best(scores, max(scores), every)
    if since < 1:
        return [Word("good", f"The newest preview, of step {best}, is the best so far", "")]
    what = f"The best preview is that of step {best}; {since} since then scored no better"
    return [Word("good" if since < 3 else "warn", what, "its checkpoint is kept")]
