"""The straight path between data and noise, and its conversions in inverse pairs.

    xt = (1 - sigma) x0 + sigma eps,        velocity = d xt / d sigma = eps - x0

with ``sigma`` in [0, 1] and 1 = pure noise. Equation numbers refer to ``docs/math.md``.
Everywhere ``xt``, ``x0``, ``eps`` and ``velocity`` are [B, ...] and ``sigma`` is [B].
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast: [B] -> [B, 1, ..., 1] with ``like.ndim`` axes."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Point of the path between ``x0`` and ``eps`` at ``sigma``, Eq. 1: [B, ...]."""
    s = expand(sigma, x0)
    return (1 - s) * x0 + s * eps


def x0_from_velocity(xt: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Clean latent that a velocity points at, Eq. 3: ``x0 = xt - sigma v``, [B, ...]."""
    return xt - expand(sigma, xt) * velocity


def velocity_from_x0(xt: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Inverse of `x0_from_velocity`: ``v = (xt - x0) / sigma``, [B, ...]; undefined at sigma 0."""
    return (xt - x0) / expand(sigma, xt)


def eps_from_velocity(xt: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Noise that a velocity comes from, Eq. 4: ``eps = xt + (1 - sigma) v``, [B, ...]."""
    return xt + (1 - expand(sigma, xt)) * velocity


def velocity_from_eps(xt: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Inverse of `eps_from_velocity`: ``v = (eps - xt) / (1 - sigma)``; undefined at sigma 1."""
    return (eps - xt) / (1 - expand(sigma, xt))


def euler_step(xt: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Move along the velocity from ``sigma`` to ``sigma_next``, Eq. 5: [B, ...]."""
    return xt + expand(sigma_next - sigma, xt) * velocity


# ------------------------------------------------------------------ change of path, Eq. 6-8
# A variance-preserving model knows x_vp = a x0 + b eps with a^2 + b^2 = 1 and predicts eps. Asked
# at the time where b / a = sigma / (1 - sigma), it is a velocity field on our path: convert the
# point with `vp_from_flow` and the answer with `velocity_from_eps`.


def vp_from_sigma(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b) of the variance-preserving path at equal signal to noise, Eq. 6: [B]."""
    norm = torch.hypot(1 - sigma, sigma)
    return (1 - sigma) / norm, sigma / norm


def sigma_from_vp(a: Tensor, b: Tensor) -> Tensor:
    """Inverse of `vp_from_sigma`: ``sigma = b / (a + b)``, [B]."""
    return b / (a + b)


def vp_from_flow(xt: Tensor, sigma: Tensor) -> Tensor:
    """Point of our path carried to the variance-preserving one, Eq. 7: ``(a + b) xt``, [B, ...]."""
    a, b = vp_from_sigma(sigma)
    return expand(a + b, xt) * xt


def flow_from_vp(x_vp: Tensor, sigma: Tensor) -> Tensor:
    """Inverse of `vp_from_flow`: ``x_vp / (a + b)``, [B, ...]."""
    a, b = vp_from_sigma(sigma)
    return x_vp / expand(a + b, x_vp)


def vp_time(sigma: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Time of a variance-preserving model that matches ``sigma``, Eq. 8.

    Between trained times the time is interpolated linearly in the log of b / a. Beyond the trained
    range (at sigma 1, above all) the nearest trained time is taken, and the sigma that belongs to
    it is returned with it, for `vp_from_flow` and `velocity_from_eps`, which divide by 1 - sigma.

    Args:
        sigma: Noise level on our path, [B].
        alphas_cumprod: a^2 at the trained times 0..T-1, strictly decreasing, [T].

    Returns:
        The (fractional) time [B] and the sigma it stands for [B].
    """
    table = 0.5 * (torch.log1p(-alphas_cumprod) - torch.log(alphas_cumprod))  # log b/a, increasing
    wanted = torch.logit(sigma.to(table.dtype)).clamp(table[0], table[-1])
    right = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    left = right - 1
    time = left + (wanted - table[left]) / (table[right] - table[left])
    return time, torch.sigmoid(wanted)
