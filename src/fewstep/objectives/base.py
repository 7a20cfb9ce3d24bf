"""An objective is one operation with three choices: site, probe and direction.

1. Ask the student at the *site*; it answers with a clean latent x0.
2. Re-noise x0, detached, to a sigma of the *probe* law and ask the teachers there.
3. Pull x0 along the *direction* they give.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewstep.flow import x0_from_velocity
from fewstep.noising import renoise
from fewstep.objectives.directions import Ask, Direction
from fewstep.objectives.pull import FLOOR, pull_loss, pull_norm
from fewstep.objectives.sites import Site
from fewstep.randomness import Draws
from fewstep.records import Anchor, Conditioning, Term
from fewstep.schedules import Law

Positive = Annotated[float, Field(gt=0)]


class Objective(BaseModel, ABC):
    """One term of the student's loss, and its settings: frozen, strict.

    A named objective is a subclass in a file of its own that gives ``name``, ``site`` and ``probe``
    their defaults and says its ``direction``.

    Attributes:
        name: How recipes, logs and draws call it.
        site: Where the student is asked, Eq. 20.
        probe: Law of the sigma at which the teachers are asked, Eq. 21.
        weight: Factor of its loss.
        warmup_steps: Steps over which the weight grows linearly to its full value; 0 = none.
        floor: Least normaliser k, Eq. 18.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    site: Site
    probe: Law
    weight: Positive = 1.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    floor: Positive = FLOOR

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """Where the teachers pull, Eq. 22-23."""

    def weight_at(self, step: int) -> float:
        """Weight at a step counted from 0, warm-up included, Eq. 24."""
        return self.weight * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def __call__(
        self,
        ask: Ask,
        anchor: Anchor,
        *,
        cond: Conditioning,
        null: Conditioning,
        draws: Draws,
        indices: Tensor,
    ) -> Term:
        """This objective alone; see `evaluate`."""
        (term,) = evaluate([self], ask, anchor, cond=cond, null=null, draws=draws, indices=indices)
        return term


def by_site(objectives: Sequence[Objective]) -> list[list[Objective]]:
    """Objectives grouped by equal sites, in order: each group costs one student evaluation."""
    groups: dict[Site, list[Objective]] = {}
    for objective in objectives:
        groups.setdefault(objective.site, []).append(objective)
    return list(groups.values())


def evaluate(
    objectives: Sequence[Objective],
    ask: Ask,
    anchor: Anchor,
    *,
    cond: Conditioning,
    null: Conditioning,
    draws: Draws,
    indices: Tensor,
) -> list[Term]:
    """All terms of a batch; the student is evaluated once per distinct site.

    The gradient reaches the student alone: through its x0 at the sites, nowhere else.

    Args:
        objectives: The recipe's list.
        ask: The three networks.
        anchor: Where this iteration works, batch B.
        cond: Prompts, batch B.
        null: The encoded empty prompt, batch B.
        draws: The step's random values.
        indices: Global index of each sample, [B].

    Returns:
        One term per objective, in the order of `by_site`.
    """
    terms = []
    for group in by_site(objectives):
        xt, sigma = group[0].site(anchor, draws, indices)
        x0 = x0_from_velocity(xt, ask.student(xt, sigma, cond), sigma)
        for objective in group:
            probe = renoise(
                x0,
                objective.probe,
                anchor_sigma=anchor.sigma,
                name=objective.name,
                draws=draws,
                indices=indices,
            )
            with torch.no_grad():
                pull = objective.direction(ask, probe.xt, probe.sigma, cond, null)
            terms.append(_term(objective, x0, *pull, step=draws.step))
    return terms


def _term(
    objective: Objective, x0: Tensor, direction: Tensor, reference: Tensor, *, step: int
) -> Term:
    """The pull as a weighted, reportable term, Eq. 18-19 and 24."""
    loss = pull_loss(x0, direction, reference, floor=objective.floor, reduction="none")
    return Term(
        name=objective.name,
        loss=objective.weight_at(step) * loss,
        norm=pull_norm(x0, reference, floor=objective.floor),
        direction=direction,
        x0=x0.detach(),
    )
