"""An objective: asks the student at a site, and turns its answer into a term of the loss.

Nearly all are one operation with two more choices, a `Pull`:

1. Ask the student at the *site*; it answers with a clean latent x0.
2. Re-noise x0, detached, to a sigma of the *probe* law and ask the teachers there.
3. Pull x0 along the *direction* they give.

The questions of all objectives are known before the first is asked, so that they can share a batch.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewstep.core.flow import x0_from_velocity
from fewstep.core.noise import Draws, renoise_evenly
from fewstep.core.schedules import Law
from fewstep.core.types import Anchor, Conditioning, Term
from fewstep.objectives.directions import Direction
from fewstep.objectives.pull import FLOOR, pull_loss, pull_norm
from fewstep.objectives.questions import Ask, Question, Reply, reply_to
from fewstep.objectives.sites import Site
from fewstep.objectives.weights import Weight
from fewstep.utils.errors import FewstepError

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the student said at a site, and all that a term may be made of besides.

    Attributes:
        velocity: The student's velocity at the site, with its graph, [B, ...].
        x0: The clean latent it points at, with its graph, [B, ...].
        ask: The three networks.
        anchor: Where this iteration works, batch B.
        cond: Prompts, batch B.
        null: The encoded empty prompt, batch B.
        draws: The step's random values.
        indices: Global index of each sample, [B].
    """

    velocity: Tensor
    x0: Tensor
    ask: Ask
    anchor: Anchor
    cond: Conditioning
    null: Conditioning
    draws: Draws
    indices: Tensor


class Objective(BaseModel, ABC):
    """One term of the student's loss, and its settings: frozen, strict.

    Attributes:
        name: How recipes, logs and draws call it.
        site: Where the student is asked, Eq. 20.
        weight: Factor of its loss: a number, or points (step, weight) that it runs through.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    site: Site
    weight: Weight = ((0, 1.0),)

    @property
    def misfits(self) -> Mapping[str, str]:
        """Kinds of guidance it cannot be used with ("cfg", "embedded"): why, and what to do."""
        return {}

    def questions(self, answer: Answer) -> Sequence[Question]:
        """What it asks the teachers, given the student's answer at its site; nothing by default."""
        return ()

    @abstractmethod
    def term(self, answer: Answer, replies: Sequence[Reply]) -> Term:
        """What it makes of the student's answer and the replies; weighted, see `weight_at`."""

    def weight_at(self, step: int) -> float:
        """Weight at a step counted from 0, Eq. 24."""
        steps, weights = zip(*self.weight, strict=True)
        return float(np.interp(step + 1, steps, weights))

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


class Pull(Objective):
    """An objective that pulls the student's x0 where the teachers say, Eq. 18-19.

    A named one is a subclass in a file of its own that gives ``name``, ``site`` and ``probe`` their
    defaults and says its ``direction``.

    Attributes:
        probe: Law of the sigma at which the teachers are asked, Eq. 21.
        probes: How often they are asked about one answer; the pull is the mean, Eq. 21a.
        floor: Least normaliser k, Eq. 18.
    """

    probe: Law
    probes: Annotated[int, Field(ge=1)] = 1
    floor: Positive = FLOOR

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """Where the teachers pull, Eq. 22-23 and 26."""

    def questions(self, answer: Answer) -> Sequence[Question]:
        """What its direction asks at each probe, Eq. 21."""
        points = renoise_evenly(
            answer.x0,
            self.probe,
            self.probes,
            anchor_sigma=answer.anchor.sigma,
            name=self.name,
            draws=answer.draws,
            indices=answer.indices,
        )
        return [
            question
            for point in points
            for question in self.direction.questions(
                point.xt, point.sigma, answer.cond, answer.null
            )
        ]

    def term(self, answer: Answer, replies: Sequence[Reply]) -> Term:
        """The mean pull as a weighted, reportable term, Eq. 18-19 and 24."""
        x0, each = answer.x0, len(replies) // self.probes
        losses, norms, directions = [], [], []
        for first in range(0, len(replies), each):
            asked = replies[first : first + each]
            direction, reference = self.direction.between(*(reply.x0 for reply in asked))
            losses.append(pull_loss(x0, direction, reference, floor=self.floor, reduction="none"))
            norms.append(pull_norm(x0, reference, floor=self.floor))
            directions.append(direction)
        return Term(
            name=self.name,
            loss=self.weight_at(answer.draws.step) * torch.stack(losses).mean(0),
            norm=torch.stack(norms).mean(0),
            direction=torch.stack(directions).mean(0),
            x0=x0.detach(),
        )


def by_site(objectives: Sequence[Objective]) -> list[list[Objective]]:
    """Objectives grouped by equal sites, in order: each group shares one answer of the student."""
    groups: dict[Site, list[Objective]] = {}
    for objective in objectives:
        groups.setdefault(objective.site, []).append(objective)
    return list(groups.values())


def refuse_misfits(objectives: Sequence[Objective], guidance: str, model: str) -> None:
    """Check that objectives go with a model, before anything is trained.

    Args:
        objectives: The recipe's list.
        guidance: How the model is guided: "embedded" if its network takes a scale, else "cfg".
        model: What to call the model.

    Raises:
        FewstepError: One does not; one line says which, why, and what to do.
    """
    for number, objective in enumerate(objectives):
        if guidance in objective.misfits:
            raise FewstepError(
                f"objectives.{number}: {objective.name!r} does not go with {model}: "
                f"{objective.misfits[guidance]}",
                code="mismatch",
            )


def evaluate(
    objectives: Sequence[Objective],
    ask: Ask,
    anchor: Anchor,
    *,
    cond: Conditioning,
    null: Conditioning,
    draws: Draws,
    indices: Tensor,
    together: bool = False,
) -> list[Term]:
    """All terms of a batch; the student answers with gradients once per distinct site.

    The gradient reaches the student alone: through its answers at the sites, nowhere else.

    Args:
        objectives: The recipe's list.
        ask: The three networks.
        anchor: Where this iteration works, batch B.
        cond: Prompts, batch B.
        null: The encoded empty prompt, batch B.
        draws: The step's random values.
        indices: Global index of each sample, [B].
        together: Ask each teacher all its questions in one batch; else one after the other.

    Returns:
        One term per objective, in the order of `by_site`.
    """
    asked: list[tuple[Objective, Answer]] = []
    for group in by_site(objectives):
        xt, sigma = group[0].site(anchor, draws, indices)
        velocity = ask.student(xt, sigma, cond)
        x0 = x0_from_velocity(xt, velocity, sigma)
        answer = Answer(
            velocity, x0, ask, anchor, cond=cond, null=null, draws=draws, indices=indices
        )
        asked += [(objective, answer) for objective in group]
    questions = [list(objective.questions(answer)) for objective, answer in asked]
    replies = iter(reply_to(ask, [each for own in questions for each in own], together=together))
    return [
        objective.term(answer, list(islice(replies, len(own))))
        for (objective, answer), own in zip(asked, questions, strict=True)
    ]
