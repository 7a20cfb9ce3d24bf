"""Prompts right: the share of pictures that show all their prompt asks for, and by attribute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from fewstep.evaluation.metrics.base import Measurements, References, Verdict, ahead


def share(flags: Iterable[bool]) -> tuple[float, float]:
    """Share of true flags and its standard error (binomial)."""
    known = list(flags)
    value = sum(known) / len(known)
    return value, (value * (1 - value) / len(known)) ** 0.5


def wholly_right(verdicts: Iterable[Verdict]) -> Tensor:
    """Which pictures show all that their prompts ask for [N], bool."""
    return torch.tensor([all(flag for _, flag in verdict) for verdict in verdicts])


def attribute_shares(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """`right_<attribute>`: how often each attribute is as asked, of all times it is mentioned."""
    flags: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        for attribute, flag in verdict:
            flags[attribute].append(flag)
    return {f"right_{name}": share(flags[name])[0] for name in sorted(flags)}


class Oracle:
    """What the ground truth says of each picture; a picture is right when every flag is."""

    name = "oracle"
    needs_truth = True

    def __call__(self, configuration: Measurements, references: References) -> dict[str, float]:
        """`right`, its error and lead over the baseline, and `right_<attribute>`."""
        if not configuration.verdicts:
            return {}
        right = wholly_right(configuration.verdicts)
        value, error = share(right.tolist())
        figures = {"right": value, "right_error": error}
        if references.baseline is not None and references.baseline.verdicts:
            figures |= ahead("right", right, wholly_right(references.baseline.verdicts))
        return figures | attribute_shares(configuration.verdicts)


SCORE = Oracle()
