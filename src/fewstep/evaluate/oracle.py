"""Prompts right: the share of pictures that show all their prompt asks for, and by attribute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fewstep.evaluate.base import Readings, References


def share(flags: Iterable[bool]) -> tuple[float, float]:
    """Share of true flags and its standard error (binomial)."""
    known = list(flags)
    value = sum(known) / len(known)
    return value, (value * (1 - value) / len(known)) ** 0.5


class Oracle:
    """What the ground truth says of each picture; a picture is right when every flag is."""

    name = "oracle"
    needs_truth = True

    def __call__(self, arm: Readings, references: References) -> dict[str, float]:
        """`right`, `right_error`, and `right_<attribute>` over the mentions of each attribute."""
        if not arm.verdicts:
            return {}
        value, error = share(all(flag for _, flag in verdict) for verdict in arm.verdicts)
        by_name: dict[str, list[bool]] = defaultdict(list)
        for verdict in arm.verdicts:
            for attribute, flag in verdict:
                by_name[attribute].append(flag)
        shares = {f"right_{name}": share(flags)[0] for name, flags in sorted(by_name.items())}
        return {"right": value, "right_error": error, **shares}


SCORE = Oracle()
