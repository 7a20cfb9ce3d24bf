"""What an objective is, and how a list of them is evaluated with shared network calls.

An objective is one generator method, `Objective.term`, that reads like its equation: where it
needs a network's prediction it *yields* a list of queries and is sent the predictions. `evaluate`
advances the generators of all objectives together, so that their queries can share batches. Nearly
all objectives are a `Pull`, which leaves only `Pull.direction` to be written.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from torch import Tensor, nn

from fewstep.config import OptimizerRecipe
from fewstep.config.strict import STRICT, Amount
from fewstep.core.flow import expand, x0_from_velocity
from fewstep.core.noise import Draws, renoise
from fewstep.core.schedules import Law
from fewstep.core.types import Anchor, Conditioning, Reduction, Term, per_sample, reduced
from fewstep.objectives.queries import Asking, Networks, drive
from fewstep.objectives.sites import AtAnchor, Site
from fewstep.utils.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.models import Backbone

Positive = Annotated[float, Field(gt=0, le=1000)]
FLOOR = 0.1
"""Least normaliser k: bounds the pull on a student that already agrees with its teachers."""


@dataclass(frozen=True, eq=False)
class AnchorBatch:
    """A batch at its anchors: what objectives are evaluated on.

    Attributes:
        anchor: Where each sample is in its simulation, batch B.
        cond: Prompts, batch B.
        null: The encoded empty prompt, batch B.
        draws: The random values of this iteration.
        indices: Global index of each sample, [B].
        student_velocity: The student's velocity at the anchors with its graph, [B, ...], where the
            simulation has computed it already and objectives are to reuse it; else None.
    """

    anchor: Anchor
    cond: Conditioning
    null: Conditioning
    draws: Draws
    indices: Tensor
    student_velocity: Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list[AnchorBatch]:
        """The same samples as several batches of so many, one after the other."""
        ends = list(accumulate(sizes))
        slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        names = [field.name for field in fields(Anchor)]
        return [
            AnchorBatch(
                Anchor(**{name: getattr(self.anchor, name)[part] for name in names}),
                self.cond.select(part),
                self.null.select(part),
                self.draws,
                self.indices[part],
                None if self.student_velocity is None else self.student_velocity[part],
            )
            for part in slices
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Context(AnchorBatch):
    """The student's prediction at a site, and all else that a term can be computed from.

    Attributes:
        xt: Latents at the site, [B, ...].
        sigma: Their noise levels, [B].
        velocity: The student's velocity there, with its graph, [B, ...].
        x0: The clean latents it points at, with their graph, [B, ...].
        modules: Networks that objectives bring along, by name, see `Objective.networks`.
    """

    xt: Tensor
    sigma: Tensor
    velocity: Tensor
    x0: Tensor
    modules: Mapping[str, nn.Module]


# -------------------------------------------------------------------------------------- objectives

Points: TypeAlias = tuple[tuple[int, float], ...]


def _as_points(value: Any) -> Any:
    """A number is a constant weight; lists, as YAML has them, become tuples."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ((0, value),)
    if isinstance(value, list | tuple):
        return tuple(tuple(point) if isinstance(point, list) else point for point in value)
    raise ValueError(f"must be a number or a list of [step, weight], not {value!r}")


def _check_points(points: Points) -> Points:
    if any(before >= after for (before, _), (after, _) in pairwise(points)):
        raise ValueError("the steps of [step, weight] must rise")
    if not any(weight for _, weight in points):
        raise ValueError("is 0 throughout: remove the objective instead")
    return points


Weight: TypeAlias = Annotated[
    tuple[tuple[Amount, Annotated[float, Field(ge=0, le=1e6)]], ...],
    Field(min_length=1),
    BeforeValidator(_as_points, json_schema_input_type=float | list[tuple[int, float]]),
    AfterValidator(_check_points),
]
"""A number, or points such as ``[[100, 1.0], [200, 0.25]]``: linear between them, constant before
the first and after the last, Eq. 24. The first iteration is step 1."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network that an objective trains beside the student, such as a discriminator.

    Attributes:
        module: The network, float32.
        optimizer: Settings of its optimizer; the learning rate follows the run's schedule.
    """

    module: nn.Module
    optimizer: OptimizerRecipe


class Objective(BaseModel, ABC):
    """One term of the student's loss, and its settings: frozen, strict."""

    model_config = STRICT

    name: str
    """How recipes, logs and random streams call it."""
    site: Site
    """Where the student is evaluated with gradients, Eq. 20."""
    weight: Weight = ((0, 1.0),)
    """Factor of its loss: a number, or points [step, weight] between which it is linear, Eq. 24."""

    @property
    def unsupported_guidance(self) -> Mapping[str, str]:
        """Kinds of guidance ("cfg", "embedded") it cannot be used with: why, and what to do."""
        return {}

    @abstractmethod
    def term(self, at: Context) -> Asking[Term]:
        """The loss per sample [B], without its weight, and what is reported of it."""

    def networks(self, backbone: Backbone) -> Mapping[str, TrainedNetwork]:
        """Networks that it trains beside the student, by a name of their own; none by default."""
        return {}

    def network_loss(self, network: str, at: Context) -> Asking[Tensor]:
        """Loss per sample [B] of one of `networks`, which is updated before the student.

        In `at`, the student's prediction has no graph.
        """
        raise NotImplementedError(f"{self.name} says no loss for its network {network!r}")

    def weight_at(self, step: int) -> float:
        """Weight at a step counted from 0, Eq. 24."""
        steps, weights = zip(*self.weight, strict=True)
        return float(np.interp(step + 1, steps, weights))


class Pull(Objective):
    """An objective that pulls the student's x0 along a direction that teachers give, Eq. 18-19.

    The student's x0, detached, is noised to a sigma of the *probe* law, Eq. 21; the teachers'
    predictions there give the direction.
    """

    probe: Law
    """Law of the sigma at which the teachers are queried, Eq. 21."""
    floor: Positive = FLOOR
    """Smallest normaliser k, Eq. 18, in latent units: smaller where latents have a smaller spread
    than SD3's."""

    @abstractmethod
    def direction(self, xt: Tensor, sigma: Tensor, at: Context) -> Asking[tuple[Tensor, Tensor]]:
        """Direction of the pull, and the reference that k compares the student's x0 with.

        Args:
            xt: The student's x0 under fresh noise, [B, ...].
            sigma: Its noise level, [B].
            at: The student's prediction, prompts and random values.

        Returns:
            Two tensors [B, ...].
        """

    def term(self, at: Context) -> Asking[Term]:
        """The pull as a loss, Eq. 18-19."""
        probe = renoise(
            at.x0,
            self.probe,
            anchor_sigma=at.anchor.sigma,
            name=self.name,
            draws=at.draws,
            indices=at.indices,
        )
        direction, reference = yield from self.direction(probe.xt, probe.sigma, at)
        return Term(
            name=self.name,
            loss=pull_loss(at.x0, direction, reference, self.floor, "none"),
            norm=pull_norm(at.x0, reference, floor=self.floor),
            direction=direction,
            x0=at.x0.detach(),
        )


def pull_norm(x0: Tensor, reference: Tensor, *, floor: float = FLOOR) -> Tensor:
    """Normaliser k, Eq. 18: ``max(mean |reference - x0|, floor)`` per sample, detached: [B]."""
    return per_sample((reference - x0.detach()).abs()).clamp(min=floor)


def pull_loss(
    x0: Tensor,
    direction: Tensor,
    reference: Tensor,
    floor: float = FLOOR,
    reduction: Reduction = "mean",
) -> Tensor:
    """Loss whose gradient moves x0 along a direction, Eq. 19, in float32.

    ``mean over elements of (x0 - stopgrad(x0 + direction / k))^2``; its gradient with respect to
    x0 is ``-2 direction / (k n)`` for n elements. A non-finite ``direction / k`` counts as 0 (nan)
    or as the largest float (inf); x0 itself is never repaired, so a diverged student shows.

    Args:
        x0: The student's clean latents, with their graph, [B, ...].
        direction: Where to pull them, [B, ...].
        reference: What the normaliser compares x0 with, [B, ...].
        floor: Least normaliser.
        reduction: ``mean`` gives a scalar, ``none`` the mean per sample, [B].
    """
    x0, direction, reference = x0.float(), direction.float(), reference.float()
    k = pull_norm(x0, reference, floor=floor)
    target = x0 + torch.nan_to_num(direction / expand(k, x0))
    return reduced(per_sample((x0 - target.detach()).square()), reduction)


# -------------------------------------------------------------------------------------- evaluation


def by_site(objectives: Sequence[Objective]) -> list[list[Objective]]:
    """Objectives grouped by equal sites, in order: a group shares one prediction of the student."""
    groups: dict[Site, list[Objective]] = {}
    for objective in objectives:
        groups.setdefault(objective.site, []).append(objective)
    return list(groups.values())


def refuse_unsupported(objectives: Sequence[Objective], guidance: str, model: str) -> None:
    """Check that a model's kind of guidance suits all objectives, before anything is trained.

    Args:
        objectives: The recipe's list.
        guidance: "embedded" if the network takes a guidance scale as an input, else "cfg".
        model: What to call the model.

    Raises:
        FewstepError: It does not suit one; the line says which, why, and what to do.
    """
    for number, objective in enumerate(objectives):
        if reason := objective.unsupported_guidance.get(guidance):
            raise FewstepError(
                f"objectives.{number}: {objective.name!r} does not go with {model}: {reason}",
                code="mismatch",
            )


def evaluate(
    objectives: Sequence[Objective],
    networks: Networks,
    batch: AnchorBatch,
    *,
    batched: bool = False,
) -> list[Term]:
    """Weighted terms of a batch; the student is evaluated with gradients once per distinct site.

    Args:
        objectives: The recipe's list.
        networks: Student, teacher and fake teacher.
        batch: Where they are evaluated, batch B.
        batched: Answer queries to one network by one call where their shapes allow it.

    Returns:
        One term per objective, in the order of `by_site`.
    """
    pairs = contexts(objectives, networks, batch)
    terms = drive([each.term(at) for each, at in pairs], networks, batched=batched)
    return [
        replace(term, loss=each.weight_at(batch.draws.step) * term.loss)
        for (each, _), term in zip(pairs, terms, strict=True)
    ]


def contexts(
    objectives: Sequence[Objective], networks: Networks, batch: AnchorBatch
) -> list[tuple[Objective, Context]]:
    """Each objective with the student's prediction at its site, in the order of `by_site`."""
    pairs: list[tuple[Objective, Context]] = []
    for group in by_site(objectives):
        site = group[0].site
        xt, sigma = site(batch.anchor, batch.draws, batch.indices)
        if batch.student_velocity is not None and site == AtAnchor():
            velocity = batch.student_velocity
        else:
            velocity = networks.velocity("student", xt, sigma, batch.cond)
        at = Context(
            **vars(batch),
            xt=xt,
            sigma=sigma,
            velocity=velocity,
            x0=x0_from_velocity(xt, velocity, sigma),
            modules=networks.modules,
        )
        pairs += [(objective, at) for objective in group]
    return pairs
