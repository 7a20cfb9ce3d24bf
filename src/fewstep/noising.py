"""Fresh noise on a clean latent at a sigma drawn from a law: the one way a batch is re-noised.

Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewstep.flow import add_noise
from fewstep.randomness import Draws
from fewstep.schedules import Law


class Noised(NamedTuple):
    """A noisy latent and what it was made of.

    Attributes:
        xt: Noisy latent, [B, ...].
        sigma: Its noise level, [B].
        eps: The noise in it, [B, ...].
    """

    xt: Tensor
    sigma: Tensor
    eps: Tensor


def renoise(
    x0: Tensor, law: Law, *, anchor_sigma: Tensor, name: str, draws: Draws, indices: Tensor
) -> Noised:
    """Detached clean latents under fresh noise, Eq. 21; see `renoise_evenly`."""
    (noised,) = renoise_evenly(
        x0, law, 1, anchor_sigma=anchor_sigma, name=name, draws=draws, indices=indices
    )
    return noised


def renoise_evenly(
    x0: Tensor,
    law: Law,
    count: int,
    *,
    anchor_sigma: Tensor,
    name: str,
    draws: Draws,
    indices: Tensor,
) -> list[Noised]:
    """The same several times, for means that vary less than those of independent draws, Eq. 21a.

    The sigmas are spread evenly over the law, and every second noise mirrors the one before. Each
    is by itself what `renoise` draws, and the first is that very draw.

    Args:
        x0: Clean latent, [B, ...].
        law: Law of the sigma.
        count: How many, at least 1.
        anchor_sigma: Sigma of the anchor, for laws that look at it, [B].
        name: Purpose; draws of different names are independent.
        draws: The step's random values.
        indices: Global index of each sample, [B].
    """
    u = draws.uniform(f"{name}/sigma", indices)
    found: list[Noised] = []
    for number in range(count):
        if number % 2:
            eps = -found[-1].eps
        else:
            purpose = f"{name}/eps/{number}" if number else f"{name}/eps"
            eps = draws.normal(purpose, indices, x0.shape[1:])
        sigma = law((u + number / count) % 1, anchor_sigma)
        found.append(Noised(add_noise(x0.detach(), eps, sigma), sigma, eps))
    return found
