"""Prompts right: the share of pictures that show all their prompt asks for, and by attribute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from fewstep.evaluate.base import Readings, References, Verdict, ahead


def share(flags: Iterable[bool]) -> tuple[float, float]:
    """Share of true flags and its standard error (binomial)."""
    known = list(flags)
    value = sum(known) / len(known)
    return value, (value * (1 - value) / len(known)) ** 0.5


def wholly_right(verdicts: Iterable[Verdict]) -> Tensor:
    """Which pictures show all that their prompts ask for [N], bool."""
    return torch.tensor([all(flag for _, flag in verdict) for verdict in verdicts])


class Oracle:
    """What the ground truth says of each picture; a picture is right when every flag is."""

    name = "oracle"
    needs_truth = True

    def __call__(self, arm: Readings, references: References) -> dict[str, float]:
        """`right`, its error, by how much it is ahead of the rival's, and `right_<attribute>`.

        An attribute's share is over its mentions.
        """
        if not arm.verdicts:
            return {}
        right = wholly_right(arm.verdicts)
        value, error = share(right.tolist())
        figures = {"right": value, "right_error": error}
        if references.rival is not None and references.rival.verdicts:
            figures |= ahead("right", right, wholly_right(references.rival.verdicts))
        by_name: dict[str, list[bool]] = defaultdict(list)
        for verdict in arm.verdicts:
            for attribute, flag in verdict:
                by_name[attribute].append(flag)
        shares = {f"right_{name}": share(flags)[0] for name, flags in sorted(by_name.items())}
        return figures | shares


SCORE = Oracle()
