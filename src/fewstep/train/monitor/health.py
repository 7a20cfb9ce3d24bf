"""Measurements that show whether training is healthy, which the losses of few-step models do not.

The statistics of the student's latents should stay near the teacher's, and the gap between the fake
teacher's and the teacher's denoising losses on the student's samples should stay small: that gap is
what distribution matching closes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.config import HealthRecipe
from fewstep.core.flow import add_noise
from fewstep.core.noise import Draws
from fewstep.core.schedules import Shift, few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.core.types import Conditioning
from fewstep.objectives.fake_teacher import denoising_loss
from fewstep.train.roles import Roles
from fewstep.train.step import Metrics

STEPS = 4


class Health:
    """Measures the networks on fixed prompts and fixed noise, every so many iterations.

    Attributes:
        cond: The encoded prompts, batch N.
        noise: What the latents start from, [N, ...].
    """

    def __init__(
        self,
        recipe: HealthRecipe,
        cond: Conditioning,
        *,
        latent_shape: tuple[int, ...],
        shift: Shift,
    ) -> None:
        """Draws the noise; nothing is evaluated yet.

        Args:
            recipe: How many samples, at which noise levels.
            cond: The encoded prompts, batch N.
            latent_shape: Shape of one sample.
            shift: What is done to base sigmas on the student's grid.
        """
        device = next(iter(cond.tensors.values())).device
        draws, samples = Draws(0, 0, device), range(cond.batch)
        self._recipe = recipe
        self.cond = cond
        self.noise = draws.normal("health/start", samples, latent_shape)
        self._eps = draws.normal("health/eps", samples, latent_shape)
        base = torch.tensor(few_step_sigmas(STEPS))
        self._sigmas = with_shift(base, shift).to(device)
        self._baseline: tuple[Tensor, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether to measure after a step; step 0, before training, is one of them."""
        return step % self._recipe.every == 0

    @torch.no_grad()
    def measure(self, roles: Roles) -> Metrics:
        """Compares the student's four-step latents with the teacher's on the same grid.

        Returns:
            ``health/mean_drift``: difference of the means, in standard deviations of the teacher's
            latents; 0 before training. ``health/std_ratio``: ratio of the standard deviations; 1
            before training. ``health/fake_teacher_loss@SIGMA`` and ``health/teacher_loss@SIGMA``:
            denoising losses on the student's latents.
        """
        baseline = self._teacher(roles)
        x0 = sample(roles.student, self.noise, self._sigmas, self.cond)
        (mean, std), (mean_0, std_0) = _moments(x0), baseline
        metrics = {"health/mean_drift": (mean - mean_0) / std_0, "health/std_ratio": std / std_0}
        for sigma in self._recipe.sigmas:
            sigmas = torch.full((len(x0),), sigma, device=x0.device)
            xt = add_noise(x0, self._eps, sigmas)
            for name in ("fake_teacher", "teacher"):
                velocity = getattr(roles, name)
                loss = denoising_loss(velocity(xt, sigmas, self.cond), x0, self._eps)
                metrics[f"health/{name}_loss@{sigma:g}"] = loss
        return metrics

    def teacher_is_finite(self, roles: Roles) -> bool:
        """Whether the teacher's latents, which are drawn once, are finite."""
        return all(bool(each.isfinite()) for each in self._teacher(roles))

    def _teacher(self, roles: Roles) -> tuple[Tensor, Tensor]:
        if self._baseline is None:
            self._baseline = _moments(sample(roles.teacher, self.noise, self._sigmas, self.cond))
        return self._baseline


def _moments(x0: Tensor) -> tuple[Tensor, Tensor]:
    return x0.mean(), x0.std()
