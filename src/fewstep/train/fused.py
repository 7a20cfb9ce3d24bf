"""Backward simulation that stops, sample by sample, where the sample's anchor is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.flow import euler_step, x0_from_velocity
from fewstep.core.types import Anchor, Conditioning, VelocityFn
from fewstep.objectives.questions import Ask


@torch.no_grad()
def simulate_to(
    velocity: VelocityFn,
    noise: Tensor,
    sigmas: Tensor,
    cond: Conditioning,
    *,
    index: Tensor,
    calls: int = 0,
) -> Anchor:
    """What ``simulate(...).pick(index)`` gives, for about half the evaluations.

    A sample leaves the batch before its anchor; at the anchors all are asked at once.

    Args:
        velocity: The student.
        noise: Latent to start from, [B, ...].
        sigmas: Grid with the model's shift and the final 0, [N + 1].
        cond: Prompts, batch B.
        index: Each sample's anchor in 0..N-1, [B], on the CPU.
        calls: How often the velocity is asked at least: one sample walks on for nothing if need be.
    """
    xt, sigma, sigma_next = walk_to(velocity, noise, sigmas, cond, index=index, calls=calls - 1)
    return anchor_at(xt, sigma, sigma_next, velocity(xt, sigma, cond))


def anchor_at(xt: Tensor, sigma: Tensor, sigma_next: Tensor, velocity: Tensor) -> Anchor:
    """The anchor of a simulation that ended there; its `final` is not known, x0 stands in for it.

    Args:
        xt: Latents, [B, ...].
        sigma: Their noise levels, [B].
        sigma_next: The next ones of the grid, [B].
        velocity: The student's, [B, ...]; detached.
    """
    x0 = x0_from_velocity(xt, velocity.detach(), sigma)
    return Anchor(xt, sigma, sigma_next, velocity=velocity.detach(), x0=x0, final=x0)


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
    """The way to the anchors, as `simulate_to` takes it: where the student is to be asked next.

    Returns:
        Latents [B, ...], their sigmas and the next ones of the grid, [B] each.
    """
    # Those that stay longest come first: the ones still walking are always the front of the batch.
    order = index.argsort(descending=True, stable=True)
    walking = [int((index > i).sum()) for i in range(len(sigmas) - 1)]
    sigmas, device = sigmas.to(noise, non_blocking=True), noise.device
    rows, back, index = (
        each.to(device, non_blocking=True) for each in (order, order.argsort(), index)
    )
    xt, cond = noise[rows], cond.select(rows)
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


@dataclass(frozen=True, eq=False)
class Remembering:
    """The three networks, the student's answer at the anchor being known, with its graph.

    Attributes:
        ask: The networks.
        anchor: Where the student was asked.
        cond: The prompts it was asked with.
        velocity: What it said, [B, ...].
    """

    ask: Ask
    anchor: Anchor
    cond: Conditioning
    velocity: Tensor

    @property
    def teacher(self) -> VelocityFn:
        """As it is."""
        return self.ask.teacher

    @property
    def fake_teacher(self) -> VelocityFn:
        """As it is."""
        return self.ask.fake_teacher

    def student(self, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The known answer at the anchor itself, a new one anywhere else: [B, ...]."""
        if xt is self.anchor.xt and cond is self.cond:
            return self.velocity
        return self.ask.student(xt, sigma, cond)
