"""What the fused step saves: the simulation ends, sample by sample, at the sample's anchor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from fewstep.core.flow import euler_step, x0_from_velocity
from fewstep.core.types import Anchor, Conditioning, VelocityFn

T = TypeVar("T")


def simulated_together(parts: Sequence[T], sizes: Sequence[int], most: int) -> list[list[T]]:
    """Groups of parts of a batch, in their order, that are simulated to their anchors together.

    Args:
        parts: The parts.
        sizes: Samples of each.
        most: Samples of a group at most; a part that has more is a group of its own.
    """
    groups: list[list[T]] = []
    filled = 0
    for part, size in zip(parts, sizes, strict=True):
        if not groups or filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += size
    return groups


def lockstep_parts(index: Tensor, processes: int, parts: int) -> list[Tensor]:
    """Samples that processes with sharded networks work on at the same time, part by part.

    All processes must call the networks equally often, up to the last anchor of any of the part's
    samples. So the global batch is sorted by anchor: those of a part then have anchors close
    together, in all processes.

    Args:
        index: Each sample's anchor, of the global batch, [B].
        processes: How many there are; each gets B / processes samples.
        parts: Parts that each works through, one after the other.

    Returns:
        For every part the samples' indices in the global batch, [processes, samples of one].
    """
    order = index.argsort(descending=True, stable=True).view(-1, processes)
    return [part.T.contiguous() for part in order.tensor_split(parts)]


def walk_evaluations(index: Tensor, calls: int = 0) -> int:
    """Network evaluations, in samples, that `simulate_to` takes for some anchors [B]."""
    walking = [int((index > i).sum()) for i in range(max(calls - 1, int(index.max())))]
    return sum(max(count, 1) for count in walking) + len(index)


def simulate_to(
    velocity: VelocityFn,
    noise: Tensor,
    sigmas: Tensor,
    cond: Conditioning,
    *,
    index: Tensor,
    calls: int = 0,
    keep_graph: bool = False,
) -> tuple[Anchor, Tensor]:
    """What ``simulate(...).pick(index)`` gives, for about half the evaluations.

    A sample leaves the batch at its anchor; at the anchors all samples are evaluated in one call.

    Args:
        velocity: The student.
        noise: Latents to start from, [B, ...].
        sigmas: Grid with the model's shift and the final 0, [N + 1].
        cond: Prompts, batch B.
        index: Each sample's anchor in 0..N-1, [B], on the CPU.
        calls: Least number of network calls, for processes that must call equally often: one sample
            then walks on, and its result is not used.
        keep_graph: Compute the last prediction with its graph.

    Returns:
        The anchors, whose `final` is not known (x0 stands in for it), and the student's velocity
        there, [B, ...], with its graph if wanted.
    """
    xt, sigma, sigma_next = walk_to(velocity, noise, sigmas, cond, index=index, calls=calls - 1)
    with torch.set_grad_enabled(keep_graph):
        predicted = velocity(xt, sigma, cond)
    v = predicted.detach()
    x0 = x0_from_velocity(xt, v, sigma)
    return Anchor(xt, sigma, sigma_next, velocity=v, x0=x0, final=x0), predicted


@torch.no_grad()
def walk_to(
    velocity: VelocityFn,
    noise: Tensor,
    sigmas: Tensor,
    cond: Conditioning,
    *,
    index: Tensor,
    calls: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Euler steps to the anchors, Eq. 13, without the prediction at them; see `simulate_to`.

    Returns:
        Latents at the anchors [B, ...], their sigmas and the next ones of the grid, [B] each.
    """
    # Samples that walk longest come first, so that those still walking are a slice of the batch.
    order = index.argsort(descending=True, stable=True)
    walking = [int((index > i).sum()) for i in range(len(sigmas) - 1)]
    sigmas, device = sigmas.to(noise, non_blocking=True), noise.device
    rows, back, index = (
        each.to(device, non_blocking=True) for each in (order, order.argsort(), index)
    )
    xt, cond = noise[rows], cond.select(order)
    arrived: list[Tensor] = []
    for i, (before, now) in enumerate(pairwise([len(noise), *walking])):
        arrived.append(xt[now:before])
        batch = max(now, int(i < calls))
        if batch == 0:
            break
        xt, sigma = xt[:batch], sigmas[i].expand(batch)
        v = velocity(xt, sigma, cond.select(slice(batch)))
        xt = euler_step(xt, v, sigma, sigmas[i + 1].expand(batch))
    return torch.cat(arrived[::-1])[back], sigmas[index], sigmas[index + 1]
