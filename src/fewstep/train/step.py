"""One iteration of Continuous-Time Distribution Matching: the published Algorithm 1.

No logging, no distribution, no files. Every random value is a function of (seed, step, purpose,
global sample index), so splitting the batch changes nothing but memory. What `fused` saves on the
way to the anchors, with the same gradients, is in `fused.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fewstep.config import Recipe
from fewstep.core.noise import Draws
from fewstep.core.schedules import Grid, Law, Shift, with_shift
from fewstep.core.solver import simulate
from fewstep.core.types import Conditioning, Term
from fewstep.objectives import AnchorBatch, Objective, by_site, contexts, drive, evaluate
from fewstep.objectives.fake_teacher import mix_weights, update_loss
from fewstep.objectives.sites import AtAnchor
from fewstep.train.fused import lockstep_parts, simulate_to, simulated_together
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
        every: The student is updated in every so many iterations.
        law: Noise levels the fake teacher is trained at.
        target: Odds of what it learns to denoise, see `fake_teacher.TARGETS`.
        fake_updates: Its updates per iteration.
        ida_rate: Share of the student mixed into its weights after each update, Eq. 17.
        fused: Stop simulating at the anchors and reuse predictions; else literally as published.
        simulate_batch: Samples to simulate together where parts of the batch are smaller; 0: one
            part at a time.
        batch_teachers: Answer all queries of a student update to one teacher by one call; else work
            site by site, so that one graph lives at a time. Only where fused.
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
    simulate_batch: int = 0
    batch_teachers: bool = True

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe,
        objectives: Sequence[Objective],
        *,
        latent_shape: tuple[int, ...],
        shift: Shift,
    ) -> Algorithm:
        """The algorithm of a recipe, for training and for planning alike."""
        fake: Any = recipe.fake_teacher
        return cls(
            objectives=objectives,
            grid=recipe.grid,
            shift=shift,
            latent_shape=latent_shape,
            every=recipe.student.every,
            law=fake.law,
            target=fake.target,
            fake_updates=fake.updates,
            ida_rate=fake.ida_rate,
            fused=recipe.train.step == "fused",
            simulate_batch=recipe.train.simulate_batch or 0,
            batch_teachers=recipe.train.batch_teachers,
        )

    @property
    def batched(self) -> bool:
        """Whether queries to one network share a call in a student update."""
        return self.fused and self.batch_teachers

    @property
    def stops_at_anchors(self) -> bool:
        """Whether the simulation may end at the anchors: nothing needs the final latents."""
        return self.fused and "final" not in self.target

    @property
    def backward_groups(self) -> list[list[Objective]]:
        """Objectives that are evaluated together, each group with one backward pass."""
        if not self.fused:
            return [[objective] for objective in self.objectives]
        return [list(self.objectives)] if self.batch_teachers else by_site(self.objectives)

    def reuses_anchor_prediction(self, parts: int = 1) -> bool:
        """Whether the simulation's last prediction, at the anchor, serves the objectives as well.

        Its graph lives while the fake teacher is trained, which is affordable for one part of the
        batch, not for many, and not where one graph is to live at a time.
        """
        at_anchor = any(each.site == AtAnchor() for each in self.objectives)
        return parts == 1 and self.stops_at_anchors and self.batched and at_anchor


@dataclass(frozen=True, eq=False)
class Batch:
    """Encoded prompts, the empty prompt as often, and each sample's index in the global batch.

    `global_indices` are those of all samples whose networks must be called equally often, here and
    in other processes; None where no other process depends on it.
    """

    cond: Conditioning
    null: Conditioning
    indices: Tensor
    global_indices: Tensor | None = None

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Batches joined one after the other."""
        everyone = [each.global_indices for each in parts if each.global_indices is not None]
        return Batch(
            Conditioning.cat([each.cond for each in parts]),
            Conditioning.cat([each.null for each in parts]),
            torch.cat([each.indices for each in parts]),
            torch.cat(everyone) if everyone else None,
        )


def samples_of(
    algorithm: Algorithm,
    draws: Draws,
    size: int,
    *,
    parts: int,
    rank: int = 0,
    processes: int = 1,
    joint: bool = False,
) -> list[tuple[Tensor, Tensor | None]]:
    """Which samples of the global batch a process works on, part by part.

    Args:
        algorithm: What an iteration does.
        draws: Random values of the iteration, which decide the anchors.
        size: Samples of the global batch.
        parts: Parts that each process works through, one after the other.
        rank: Number of this process.
        processes: How many there are.
        joint: Whether all must call the networks equally often.

    Returns:
        For every part the indices of its samples, and those of all samples that are worked on at
        the same time where `joint`; else None.
    """
    everyone = torch.arange(size)
    own = everyone.view(processes, -1)[rank].tensor_split(parts)
    if not joint:
        return [(samples, None) for samples in own]
    if parts == 1 or not algorithm.stops_at_anchors:
        return [(samples, everyone) for samples in own]
    steps = len(algorithm.grid(draws.shared("grid")))
    index = replace(draws, device="cpu").integers("anchor", everyone, steps)
    return [(each[rank], each.flatten()) for each in lockstep_parts(index, processes, parts)]


@dataclass(eq=False)
class TrainState:
    """The networks and what moves them.

    Attributes:
        roles: Student, teacher, fake teacher, and networks that objectives bring along.
        optimizers: One for every trained network, by its name.
        ema: Average of the student's weights, if kept.
    """

    roles: Roles
    optimizers: dict[str, Updater]
    ema: Ema | None


def iteration(
    state: TrainState, parts: Sequence[Batch], draws: Draws, algorithm: Algorithm
) -> Metrics:
    """One iteration, Algorithm 1; `parts` make up the global batch. Returns what it measured."""
    # 1. The grid: equal in all processes, since it decides the number of network calls.
    sigmas = with_shift(algorithm.grid(draws.shared("grid")), algorithm.shift)
    metrics: Metrics = {"grid/steps": torch.full((), len(sigmas) - 1.0, device=draws.device)}
    updates_student = (draws.step + 1) % algorithm.every == 0
    # 2. and 3. Backward simulation, and one random anchor per sample.
    reuse = updates_student and algorithm.reuses_anchor_prediction(len(parts))
    with state.roles.gathered(STUDENT):
        anchors = find_anchors(
            state.roles, parts, sigmas, draws, algorithm=algorithm, keep_graph=reuse
        )
    # 4. The fake teacher, and networks that objectives bring along, in every iteration.
    for update in range(algorithm.fake_updates):
        metrics |= update_fake_teacher(state, anchors, draws, algorithm=algorithm, update=update)
    for objective in algorithm.objectives:
        for network in state.roles.networks_of(objective.name):
            metrics |= update_network(state, anchors, draws, objective=objective, network=network)
    # 5. The student, in every so many iterations.
    if updates_student:
        metrics |= update_student(state, anchors, draws, algorithm=algorithm)
    return metrics


def find_anchors(
    roles: Roles,
    parts: Sequence[Batch],
    sigmas: Tensor,
    draws: Draws,
    *,
    algorithm: Algorithm,
    keep_graph: bool,
) -> list[AnchorBatch]:
    """The anchors of each part; some parts are simulated together."""
    anchors: list[AnchorBatch] = []
    sizes = [len(part.indices) for part in parts]
    for group in simulated_together(parts, sizes, algorithm.simulate_batch):
        whole = group[0] if len(group) == 1 else Batch.cat(group)
        found = find_anchor(roles, whole, sigmas, draws, algorithm=algorithm, keep_graph=keep_graph)
        anchors += [found] if len(group) == 1 else found.split([len(p.indices) for p in group])
    return anchors


def find_anchor(
    roles: Roles,
    batch: Batch,
    sigmas: Tensor,
    draws: Draws,
    *,
    algorithm: Algorithm,
    keep_graph: bool,
) -> AnchorBatch:
    """Simulate the student, conditionally and without guidance, and pick one point per sample."""
    # Pure noise on the path, Eq. 13, also where a grid starts below 1.
    noise = sigmas[0] * draws.normal("simulate/eps", batch.indices, algorithm.latent_shape)
    on_host, steps = replace(draws, device="cpu"), len(sigmas) - 1
    index = on_host.integers("anchor", batch.indices, steps)
    if not algorithm.stops_at_anchors:
        anchor = simulate(roles.student, noise, sigmas, batch.cond).pick(index)
        return AnchorBatch(anchor, batch.cond, batch.null, draws, batch.indices)
    everyone = batch.indices if batch.global_indices is None else batch.global_indices
    anchor, velocity = simulate_to(
        roles.student,
        noise,
        sigmas,
        batch.cond,
        index=index,
        calls=int(on_host.integers("anchor", everyone, steps).max()) + 1,
        keep_graph=keep_graph,
    )
    return AnchorBatch(
        anchor, batch.cond, batch.null, draws, batch.indices, velocity if keep_graph else None
    )


def update_fake_teacher(
    state: TrainState,
    anchors: Sequence[AnchorBatch],
    draws: Draws,
    *,
    algorithm: Algorithm,
    update: int,
) -> Metrics:
    """Fit the fake teacher to what the student generates, then mix the student into its weights."""
    roles = state.roles

    def loss(each: AnchorBatch) -> Tensor:
        return update_loss(
            roles.fake_teacher,
            each.anchor,
            cond=each.cond,
            draws=draws,
            indices=each.indices,
            target=algorithm.target,
            law=algorithm.law,
            name=f"fake_teacher/{update}",
        )

    metrics = _update(state, FAKE_TEACHER, loss, anchors, draws)
    if algorithm.ida_rate:
        fake, student = (roles.parameters(role).values() for role in (FAKE_TEACHER, STUDENT))
        source = draws.shared(f"fake_teacher/{update}/pull")
        mix_weights(fake, student, algorithm.ida_rate, source)
    return metrics


def update_network(
    state: TrainState,
    anchors: Sequence[AnchorBatch],
    draws: Draws,
    *,
    objective: Objective,
    network: str,
) -> Metrics:
    """Update a network that an objective brings along, such as a discriminator."""
    roles = state.roles

    def loss(each: AnchorBatch) -> Tensor:
        with torch.no_grad():
            ((_, at),) = contexts([objective], roles, each)
        (per_sample,) = drive([objective.network_loss(network, at)], roles, batched=True)
        return per_sample

    return _update(state, network, loss, anchors, draws)


def update_student(
    state: TrainState, anchors: Sequence[AnchorBatch], draws: Draws, *, algorithm: Algorithm
) -> Metrics:
    """Sum the terms, move the student against their gradient, then the average of its weights."""
    roles, total, groups = state.roles, _samples(anchors), algorithm.backward_groups
    metrics: Metrics = {}
    directions: Metrics = {}
    for each in anchors:
        terms: list[Term] = []
        for group in groups:
            evaluated = evaluate(group, roles, each, batched=algorithm.batched)
            loss = torch.stack([term.loss.sum() / total for term in evaluated]).sum()
            roles.backward(STUDENT, loss, last=each is anchors[-1] and group is groups[-1])
            terms += evaluated
        for name, value in measure(terms).items():
            metrics[name] = metrics.get(name, 0) + value / total
        for term in terms:
            pulled = term.direction.sum(dtype=torch.float32)
            directions[term.name] = directions.get(term.name, 0) + pulled
    roles.discard_gradients(keep=STUDENT)
    # A direction that is not finite counts as none in the loss, Eq. 19: it must be seen here.
    losses = {name: metrics[f"loss/{name}"] + 0 * value for name, value in directions.items()}
    norm = state.optimizers[STUDENT].update(losses, draws.step + 1)
    if state.ema is not None:
        state.ema.update()
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


def _samples(anchors: Sequence[AnchorBatch]) -> int:
    return sum(len(each.indices) for each in anchors)


def _update(
    state: TrainState,
    network: str,
    loss_of: Callable[[AnchorBatch], Tensor],
    anchors: Sequence[AnchorBatch],
    draws: Draws,
) -> Metrics:
    """Update a network by the mean of a loss per sample [B] over all parts of the batch."""
    total, losses = _samples(anchors), []
    for each in anchors:
        loss = loss_of(each).sum() / total
        state.roles.backward(network, loss, last=each is anchors[-1])
        losses.append(loss.detach())
    state.roles.discard_gradients(keep=network)
    mean = torch.stack(losses).sum()
    norm = state.optimizers[network].update({network: mean}, draws.step + 1)
    return {f"loss/{network}": mean, f"grad_norm/{network}": norm}
