"""The one ODE loop: backward simulation in training, sampling in inference.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from fewstep.core.flow import euler_step
from fewstep.core.types import Conditioning, Trajectory, VelocityFn


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor], xt: Tensor, sigmas: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Euler's method over a grid, Eq. 13, one evaluation of the velocity per step.

    Args:
        velocity: ``velocity(xt [B, ...], sigma [B]) -> [B, ...]``.
        xt: Latent at the first sigma, [B, ...].
        sigmas: Grid, [N + 1].

    Yields:
        Per step: latent before it, velocity there, latent after it, each [B, ...].
    """
    for sigma, sigma_next in pairwise(sigmas.expand(len(xt), -1).unbind(1)):
        v = velocity(xt, sigma)
        xt_next = euler_step(xt, v, sigma, sigma_next)
        yield xt, v, xt_next
        xt = xt_next


@torch.no_grad()
def simulate(velocity: VelocityFn, noise: Tensor, sigmas: Tensor, cond: Conditioning) -> Trajectory:
    """Backward simulation: every point a sampler passes, without gradients, Eq. 13.

    Args:
        velocity: The student; it is asked conditionally only, without guidance.
        noise: Latent to start from, [B, ...].
        sigmas: Grid with the model's shift and the final 0, [N + 1].
        cond: Prompts, batch B.
    """
    sigmas = sigmas.to(noise)
    steps = list(euler(lambda xt, sigma: velocity(xt, sigma, cond), noise, sigmas))
    xt, v, xt_next = zip(*steps, strict=True)
    return Trajectory(torch.stack(xt), sigmas, torch.stack(v), final=xt_next[-1])


@torch.no_grad()
def sample(velocity: VelocityFn, noise: Tensor, sigmas: Tensor, cond: Conditioning) -> Tensor:
    """Latent at the end of the grid, [B, ...]: `simulate` that keeps nothing on the way."""
    xt = noise
    steps = euler(lambda xt, sigma: velocity(xt, sigma, cond), noise, sigmas.to(noise))
    for _, _, xt_next in steps:
        xt = xt_next
    return xt


Guide: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def classifier_free(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two velocities [B, ...], Eq. 15."""
    return null + scale * (cond - null)


def guided(
    velocity: VelocityFn, null: Conditioning, scale: float, guide: Guide = classifier_free
) -> VelocityFn:
    """A velocity guided away from the empty prompt, Eq. 15.

    Costs two evaluations per call. Used where the teacher is shown, never by the student.

    Args:
        velocity: The teacher.
        null: The encoded empty prompt, of the same batch as the calls to come.
        scale: 1 = no guidance.
        guide: How the family combines the two branches: ``guide(v_cond, v_null, scale)``.
    """

    def with_guidance(xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        v_null = velocity(xt, sigma, null)
        return guide(velocity(xt, sigma, cond), v_null, scale)

    return with_guidance
