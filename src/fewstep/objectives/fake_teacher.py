"""The fake teacher: a flow-matching model of what the student now generates.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

import torch
from torch import Tensor

from fewstep.core.flow import expand
from fewstep.core.noise import Draws, renoise
from fewstep.core.schedules import Law, Uniform
from fewstep.core.stochastic_rounding import generator_on, stochastic_round
from fewstep.core.types import Anchor, Conditioning, Reduction, VelocityFn, per_sample, reduced
from fewstep.utils.errors import unknown

UNIFORM = Uniform()
TARGETS: Mapping[str, Callable[[Anchor], Tensor]] = {
    "x0": attrgetter("x0"),
    "final": attrgetter("final"),
}
"""What the fake teacher may learn to denoise: the anchor's x0_i, or the simulation's end."""
PUBLISHED: Mapping[str, float] = {"x0": 1.0}
"""Odds of targets in CDM's published setting: always the anchor's."""


def denoising_loss(
    velocity: Tensor, x0: Tensor, eps: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Flow-matching loss, Eq. 16: ``mean((velocity - (eps - x0))^2)``.

    Args:
        velocity: Prediction at the point between ``x0`` and ``eps``, [B, ...].
        x0: Clean latent, [B, ...].
        eps: Noise, [B, ...].
        reduction: ``mean`` gives a scalar, ``none`` the mean per sample, [B].
    """
    return reduced(per_sample((velocity - (eps - x0)).square()), reduction)


def update_loss(
    velocity: VelocityFn,
    anchor: Anchor,
    *,
    cond: Conditioning,
    draws: Draws,
    indices: Tensor,
    target: Mapping[str, float] = PUBLISHED,
    law: Law = UNIFORM,
    name: str = "fake_teacher",
) -> Tensor:
    """Loss of one fake-teacher update, per sample, Eq. 16: [B].

    Args:
        velocity: The fake teacher, with gradients.
        anchor: Where this iteration works, batch B.
        cond: Its prompts, batch B.
        draws: The step's random values.
        indices: Global index of each sample, [B].
        target: Odds of keys of `TARGETS`, see `choose_target`.
        law: Law of the noise level.
        name: Purpose of the draws; several updates of one step must differ in it.

    Raises:
        FewstepError: There is no such target.
    """
    x0 = choose_target(anchor, target, draws.uniform(f"{name}/target", indices))
    noised = renoise(x0, law, anchor_sigma=anchor.sigma, name=name, draws=draws, indices=indices)
    predicted = velocity(noised.xt, noised.sigma, cond)
    return denoising_loss(predicted, x0.detach(), noised.eps, reduction="none")


def choose_target(anchor: Anchor, odds: Mapping[str, float], u: Tensor) -> Tensor:
    """What each sample is to be denoised to, Eq. 16a: [B, ...].

    Args:
        anchor: Where this iteration works, batch B.
        odds: Of keys of `TARGETS`, above 0, in any unit; what is not named is never chosen.
        u: Uniform draws in (0, 1) that choose, [B].

    Raises:
        FewstepError: There is no such target.
    """
    chosen, passed, position = anchor.x0, 0.0, expand(u * sum(odds.values()), anchor.x0)
    for name, share in odds.items():
        if name not in TARGETS:
            raise unknown("fake-teacher target", name, TARGETS)
        chosen = torch.where(position > passed, TARGETS[name](anchor), chosen)
        passed += share
    return chosen


@torch.no_grad()
def mix_weights(
    fake_params: Iterable[Tensor],
    student_params: Iterable[Tensor],
    rate: float,
    source: torch.Generator | None = None,
) -> None:
    """Pull towards the student, Eq. 17, in place: ``fake <- (1 - rate) fake + rate student``.

    SenseFlow (arXiv 2506.00523) calls it implicit distribution alignment.

    Args:
        fake_params: Parameters of the fake teacher.
        student_params: Parameters of the student, in the same order.
        rate: Share of the student: 0.001 in CDM's published setting, 0.03 in SenseFlow's for FLUX.
        source: Its seed decides how weights in bfloat16 are rounded, which are in need of one:
            at random, as so small a step would be lost.
    """
    fake, student = list(fake_params), list(student_params)
    if len(fake) != len(student):
        raise ValueError(f"{len(fake)} parameters cannot be pulled towards {len(student)}")
    if source is None or all(each.dtype == torch.float32 for each in fake):
        if fake:
            torch._foreach_lerp_(fake, student, rate)
        return
    generator = generator_on(fake[0].device, source)
    for mine, other in zip(fake, student, strict=True):
        mine.copy_(stochastic_round(mine.float().lerp_(other.float(), rate), generator))
