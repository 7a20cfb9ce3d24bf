"""Backward simulation that stops, sample by sample, where the sample's anchor is."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fewstep.flow import euler_step, x0_from_velocity
from fewstep.records import Anchor, Conditioning, VelocityFn


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

    A sample leaves the batch after its anchor, so its `final` is not known: x0 stands in for it.

    Args:
        velocity: The student.
        noise: Latent to start from, [B, ...].
        sigmas: Grid with the model's shift and the final 0, [N + 1].
        cond: Prompts, batch B.
        index: Each sample's anchor in 0..N-1, [B], on the CPU.
        calls: How often the velocity is asked at least: one sample walks on for nothing if need be.
    """
    sigmas = sigmas.to(noise)
    # Those that stay longest come first: the ones still walking are always the front of the batch.
    order = index.argsort(descending=True, stable=True)
    walking = [int((index >= i).sum()) for i in range(len(sigmas))]
    asked = [max(now, int(i < calls)) for i, now in enumerate(walking)]
    rows = order.to(noise.device)
    xt, cond = noise[rows], cond.select(rows)
    left: list[tuple[Tensor, Tensor]] = []
    for i, (now, after) in enumerate(pairwise(walking)):
        batch = asked[i]
        if batch == 0:
            break
        sigma = sigmas[i].expand(batch)
        v = velocity(xt, sigma, cond.select(slice(batch)))
        left.append((xt[after:now], v[after:now]))
        xt = euler_step(xt, v, sigma, sigmas[i + 1].expand(batch))[: asked[i + 1]]
    back = order.argsort().to(noise.device)
    picked_xt, picked_v = (torch.cat(parts[::-1])[back] for parts in zip(*left, strict=True))
    index = index.to(sigmas.device)
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    x0 = x0_from_velocity(picked_xt, picked_v, sigma)
    return Anchor(picked_xt, sigma, sigma_next, velocity=picked_v, x0=x0, final=x0)
