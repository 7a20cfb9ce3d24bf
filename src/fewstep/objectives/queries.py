"""Queries to networks, and the driver that answers those of several objectives by shared calls."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.flow import x0_from_velocity
from fewstep.core.types import Conditioning

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Query:
    """A point at which an objective needs the prediction of a network.

    Attributes:
        network: ``student``, ``teacher`` or ``fake_teacher``.
        xt: Noisy latents, [B, ...].
        sigma: Their noise levels, [B].
        cond: Prompts, batch B.
        grad: Whether gradients flow back through the network: into its weights where they are
            trained, and into `xt`.
        tangent: Directions (of xt [B, ...], of sigma [B]) of a Jacobian-vector product, which
            `Prediction.jvp` then holds. Attention is computed by its plain formula, the only one
            that has forward-mode derivatives.
        blocks: Numbers of the network's blocks whose outputs are wanted, see `Prediction.features`.
    """

    network: str
    xt: Tensor
    sigma: Tensor
    cond: Conditioning
    grad: bool = False
    tangent: tuple[Tensor, Tensor] | None = None
    blocks: tuple[int, ...] = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for queries that can be answered by one network call."""
        shapes = frozenset((name, each.shape[1:]) for name, each in self.cond.tensors.items())
        wanted = (self.grad, self.tangent is None, self.blocks)
        return self.network, self.xt.shape[1:], shapes, wanted


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network predicts at the point of a query; outside the graph unless `Query.grad`.

    Attributes:
        velocity: Its velocity, [B, ...].
        x0: The clean latents that this velocity points at, Eq. 3, [B, ...].
        jvp: Derivative of the velocity along `Query.tangent`, [B, ...]; None if not asked for.
        features: For each of `Query.blocks` the tensors that the block returns, [B, ...] each.
    """

    velocity: Tensor
    x0: Tensor
    jvp: Tensor | None = None
    features: tuple[tuple[Tensor, ...], ...] = ()


Asking: TypeAlias = Generator[Sequence[Query], Sequence[Prediction], T]
"""A generator that yields queries, is sent their predictions in the same order, and returns T."""


class Networks(Protocol):
    """The networks that objectives can query.

    Attributes:
        modules: Further networks that objectives bring along, by name.
    """

    modules: dict[str, nn.Module]

    def velocity(self, network: str, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Velocity [B, ...] of the network of this name, with a graph if gradients are enabled."""

    def capture(
        self, network: str, blocks: Sequence[int]
    ) -> AbstractContextManager[Sequence[Sequence[Tensor]]]:
        """Context that collects what some blocks of a network return during a call of it."""


def drive(generators: Sequence[Asking[T]], networks: Networks, *, batched: bool = False) -> list[T]:
    """Run generators that yield queries to their ends, all in step; returns what they return.

    Args:
        generators: Such as `Objective.term` gives.
        networks: What is queried.
        batched: Answer all queries of a round that are of one kind by one network call.
    """
    results: dict[int, T] = {}
    sent: dict[int, Sequence[Prediction] | None] = dict.fromkeys(range(len(generators)))
    while sent:
        queries: dict[int, Sequence[Query]] = {}
        for number, predictions in sent.items():
            try:
                # The first send of a generator must be None: it starts it.
                queries[number] = generators[number].send(predictions)  # type: ignore[arg-type]
            except StopIteration as stop:
                results[number] = stop.value
        flat = [query for each in queries.values() for query in each]
        answers = iter(_predictions(flat, networks, batched=batched))
        sent = {number: [next(answers) for _ in each] for number, each in queries.items()}
    return [results[number] for number in range(len(generators))]


def _predictions(
    queries: Sequence[Query], networks: Networks, *, batched: bool
) -> list[Prediction]:
    """Predictions for queries, in their order."""
    groups: dict[object, list[int]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(query.kind if batched else number, []).append(number)
    predictions: dict[int, Prediction] = {}
    for numbers in groups.values():
        group = [queries[number] for number in numbers]
        predictions |= zip(numbers, _answer(group, networks), strict=True)
    return [predictions[number] for number in range(len(queries))]


def _answer(group: Sequence[Query], networks: Networks) -> list[Prediction]:
    """Predictions for queries of one kind, by one network call."""
    whole = _joined(group)
    sizes = [len(query.sigma) for query in group]
    capture = networks.capture(whole.network, whole.blocks) if whole.blocks else nullcontext(())
    with torch.set_grad_enabled(whole.grad):
        with capture as features:
            velocity, jvp = _velocity_and_jvp(networks, whole)
        blocks = [[tensor.split(sizes) for tensor in block] for block in features]
        jvps = [None] * len(group) if jvp is None else jvp.split(sizes)
        return [
            Prediction(
                velocity=v,
                x0=x0_from_velocity(query.xt, v, query.sigma),
                jvp=jvps[i],
                features=tuple(tuple(tensor[i] for tensor in block) for block in blocks),
            )
            for i, (query, v) in enumerate(zip(group, velocity.split(sizes), strict=True))
        ]


def _joined(group: Sequence[Query]) -> Query:
    """One query for a group of one kind, one batch after the other."""
    if len(group) == 1:
        return group[0]
    tangents = [query.tangent for query in group if query.tangent is not None]
    return replace(
        group[0],
        xt=torch.cat([query.xt for query in group]),
        sigma=torch.cat([query.sigma for query in group]),
        cond=Conditioning.cat([query.cond for query in group]),
        tangent=(torch.cat([x for x, _ in tangents]), torch.cat([s for _, s in tangents]))
        if tangents
        else None,
    )


def _velocity_and_jvp(networks: Networks, query: Query) -> tuple[Tensor, Tensor | None]:
    if query.tangent is None:
        return networks.velocity(query.network, query.xt, query.sigma, query.cond), None
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        xt = forward_ad.make_dual(query.xt, query.tangent[0])
        sigma = forward_ad.make_dual(query.sigma, query.tangent[1])
        dual = networks.velocity(query.network, xt, sigma, query.cond)
        velocity, jvp = forward_ad.unpack_dual(dual)
    return velocity, torch.zeros_like(velocity) if jvp is None else jvp
