"""Fresh noise on a clean latent at a sigma drawn from a law: the one way a batch is re-noised."""

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
    """Detached clean latents under fresh noise, Eq. 21 of ``docs/math.md``.

    Args:
        x0: Clean latent, [B, ...].
        law: Law of the sigma.
        anchor_sigma: Sigma of the anchor, for laws that look at it, [B].
        name: Purpose; draws of different names are independent.
        draws: The step's random values.
        indices: Global index of each sample, [B].
    """
    sigma = law(draws.uniform(f"{name}/sigma", indices), anchor_sigma)
    eps = draws.normal(f"{name}/eps", indices, x0.shape[1:])
    return Noised(add_noise(x0.detach(), eps, sigma), sigma, eps)
