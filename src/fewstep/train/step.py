"""One iteration of Continuous-Time Distribution Matching: the published Algorithm 1.

No logging, no distribution, no files. Every random value is a function of (seed, step, purpose,
global sample index), so splitting the batch changes nothing but memory. The `fused` step asks the
networks less often than the `plain` one and gives the same gradients, see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from fewstep.core.noise import Draws
from fewstep.core.schedules import Grid, Law, Shift, with_shift
from fewstep.core.solver import simulate
from fewstep.core.types import Anchor, Conditioning, Term
from fewstep.objectives import Objective, by_site, evaluate
from fewstep.objectives.fake_teacher import mix_weights, update_loss
from fewstep.objectives.questions import Ask
from fewstep.objectives.sites import AtAnchor
from fewstep.train.fused import Remembering, anchor_at, walk_to
from fewstep.train.optim import Ema, Updater
from fewstep.train.roles import FAKE_TEACHER, STUDENT, Roles

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Algorithm:
    """What Algorithm 1 leaves open.

    Attributes:
        objectives: The student's terms.
        grid: Base sigmas of the backward simulation.
        shift: What the model does to them.
        latent_shape: Shape of one sample.
        every: The student moves on every so many iterations.
        law: Noise levels the fake teacher is trained at.
        target: Odds of what it learns to denoise, see `fake_teacher.TARGETS`.
        fake_updates: Its updates per iteration.
        ida_rate: Share of the student mixed into it after each.
        fused: Ask no network twice for the same; else literally as published.
        batch_teachers: Ask each teacher all a student update's questions in one batch; else the
            sites one after the other, so that there is one graph at a time. Only where fused.
    """

    objectives: Sequence[Objective]
    grid: Grid
    shift: Shift
    latent_shape: tuple[int, ...]
    every: int
    law: Law
    target: Mapping[str, float]
    fake_updates: int
    ida_rate: float
    fused: bool = True
    batch_teachers: bool = True

    @property
    def backward_groups(self) -> list[list[Objective]]:
        """Objectives that are evaluated together, each round with one backward pass."""
        if not self.fused:
            return [[objective] for objective in self.objectives]
        return [list(self.objectives)] if self.batch_teachers else by_site(self.objectives)

    @property
    def can_keep(self) -> bool:
        """Whether the simulation's answer at the anchor, with a graph, is one objectives need.

        It lives while the fake teacher learns: not where there is to be one graph at a time.
        """
        known = self.fused and self.batch_teachers and "final" not in self.target
        return known and any(each.site == AtAnchor() for each in self.objectives)


@dataclass(frozen=True, eq=False)
class Batch:
    """Encoded prompts, the empty prompt as often, and each sample's place in the whole batch.

    `global_indices` are the places of all samples whose networks must be asked equally often, here
    and in
    other processes; None where nobody else has to keep up.
    """

    cond: Conditioning
    null: Conditioning
    indices: Tensor
    global_indices: Tensor | None = None

    def split(self, parts: int) -> list[Batch]:
        """Consecutive pieces, as even as they can be."""
        pieces = self.indices.tensor_split(parts)
        starts = [int(piece[0] - self.indices[0]) for piece in pieces]
        slices = [slice(a, a + len(piece)) for a, piece in zip(starts, pieces, strict=True)]
        return [
            Batch(
                self.cond.select(part),
                self.null.select(part),
                self.indices[part],
                self.global_indices,
            )
            for part in slices
        ]


@dataclass(eq=False)
class TrainState:
    """The networks and what moves them."""

    roles: Roles
    student: Updater
    fake_teacher: Updater
    ema: Ema | None


@dataclass(frozen=True, eq=False)
class AnchorBatch:
    """A part of the batch at its anchors, and whom to ask from there."""

    part: Batch
    anchor: Anchor
    ask: Ask


def iteration(
    train_state: TrainState, parts: Sequence[Batch], draws: Draws, algorithm: Algorithm
) -> Metrics:
    """One iteration; `parts` make up the global batch. Returns what can be measured on the way."""
    sigmas = with_shift(algorithm.grid(draws.shared("grid")), algorithm.shift)
    student_moves = (draws.step + 1) % algorithm.every == 0
    # A graph lives from here to the student's update: affordable for one part, not for many.
    keep = student_moves and len(parts) == 1 and algorithm.can_keep
    anchor_batches = [
        find_anchor(train_state.roles, part, sigmas, draws, algorithm=algorithm, keep=keep)
        for part in parts
    ]
    metrics: Metrics = {"grid/steps": torch.full((), len(sigmas) - 1.0, device=draws.device)}
    for update in range(algorithm.fake_updates):
        metrics |= update_fake_teacher(
            train_state, anchor_batches, draws, algorithm=algorithm, update=update
        )
    if student_moves:
        metrics |= update_student(train_state, anchor_batches, draws, algorithm=algorithm)
    return metrics


def find_anchor(
    roles: Roles, part: Batch, sigmas: Tensor, draws: Draws, *, algorithm: Algorithm, keep: bool
) -> AnchorBatch:
    """Simulate the student, conditionally and without guidance, to one random point per sample.

    The fused simulation ends there; with `keep`, its last answer is the one that objectives use.
    """
    # Pure noise on the path, Eq. 13, also where a grid starts below 1.
    noise = sigmas[0] * draws.normal("simulate/eps", part.indices, algorithm.latent_shape)
    on_host, steps = replace(draws, device="cpu"), len(sigmas) - 1
    index = on_host.integers("anchor", part.indices, steps)
    if "final" in algorithm.target or not algorithm.fused:
        return AnchorBatch(
            part, simulate(roles.student, noise, sigmas, part.cond).pick(index), roles
        )
    everyone = part.indices if part.global_indices is None else part.global_indices
    calls = int(on_host.integers("anchor", everyone, steps).max())
    xt, *at = walk_to(roles.student, noise, sigmas, part.cond, index=index, calls=calls)
    with torch.set_grad_enabled(keep):
        velocity = roles.student(xt, at[0], part.cond)
    anchor = anchor_at(xt, *at, velocity)
    return AnchorBatch(
        part, anchor, Remembering(roles, anchor, part.cond, velocity) if keep else roles
    )


def update_fake_teacher(
    train_state: TrainState,
    anchor_batches: Sequence[AnchorBatch],
    draws: Draws,
    *,
    algorithm: Algorithm,
    update: int,
) -> Metrics:
    """Fit the fake teacher to what the student generates, then pull it towards the student."""
    roles, total = train_state.roles, sum(len(start.part.indices) for start in anchor_batches)
    losses = []
    for start in anchor_batches:
        each = update_loss(
            roles.fake_teacher,
            start.anchor,
            cond=start.part.cond,
            draws=draws,
            indices=start.part.indices,
            target=algorithm.target,
            law=algorithm.law,
            name=f"fake_teacher/{update}",
        )
        loss = each.sum() / total
        with roles.active(FAKE_TEACHER):
            loss.backward()
        losses.append(loss.detach())
    loss = torch.stack(losses).sum()
    norm = train_state.fake_teacher.update({FAKE_TEACHER: loss}, draws.step + 1)
    if algorithm.ida_rate:
        fake, student = (roles.parameters(role).values() for role in (FAKE_TEACHER, STUDENT))
        source = draws.shared(f"fake_teacher/{update}/pull")
        mix_weights(fake, student, algorithm.ida_rate, source)
    return {f"loss/{FAKE_TEACHER}": loss, f"grad_norm/{FAKE_TEACHER}": norm}


def update_student(
    train_state: TrainState,
    anchor_batches: Sequence[AnchorBatch],
    draws: Draws,
    *,
    algorithm: Algorithm,
) -> Metrics:
    """Sum the terms, move the student against their gradient, then its running mean."""
    roles, total = train_state.roles, sum(len(start.part.indices) for start in anchor_batches)
    metrics: Metrics = {}
    for start in anchor_batches:
        terms: list[Term] = []
        for objectives in algorithm.backward_groups:
            found = evaluate(
                objectives,
                start.ask,
                start.anchor,
                cond=start.part.cond,
                null=start.part.null,
                draws=draws,
                indices=start.part.indices,
                together=algorithm.fused and algorithm.batch_teachers,
            )
            with roles.active(STUDENT):
                torch.stack([term.loss.sum() / total for term in found]).sum().backward()
            terms += found
        for name, value in measure(terms).items():
            metrics[name] = metrics.get(name, 0) + value / total
    losses = {term.name: metrics[f"loss/{term.name}"] for term in terms}
    norm = train_state.student.update(losses, draws.step + 1)
    if train_state.ema is not None:
        train_state.ema.update()
    return metrics | {f"grad_norm/{STUDENT}": norm}


def measure(terms: Sequence[Term]) -> Metrics:
    """Sums over samples: each term's loss and normaliser, cosines between their directions."""
    sums: Metrics = {}
    for term in terms:
        sums[f"loss/{term.name}"] = term.loss.detach().sum()
        sums[f"k/{term.name}"] = term.norm.sum()
    for a, b in combinations(terms, 2):
        cosines = torch.cosine_similarity(a.direction.flatten(1), b.direction.flatten(1))
        sums[f"cosine/{a.name}_{b.name}"] = cosines.sum()
    return sums
