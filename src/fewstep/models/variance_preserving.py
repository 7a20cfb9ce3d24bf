"""Teachers on a variance-preserving path as velocity fields: the exact change of path, Eq. 6-8.

Their networks take ``x_vp = a x0 + b eps`` with ``a^2 + b^2 = 1`` at trained times 0..T-1 and
predict eps, or v = a eps - b x0. A family only calls its network in `VariancePreserving.predict`.

The last trained time is not pure noise: sampling starts at its sigma, about 0.94 in Stable
Diffusion, from ``sigma eps``, as diffusers' Euler scheduler does with the same noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from torch import Tensor, nn

from fewstep.core.flow import (
    expand,
    sigma_from_vp,
    velocity_from_x0,
    vp_from_flow,
    vp_from_sigma,
    vp_time,
)
from fewstep.core.schedules import Shift, Sigmas, Terminal
from fewstep.core.types import Conditioning
from fewstep.models.base import Backbone
from fewstep.models.latents import decode_images
from fewstep.models.schedulers import TRAINED_TIMES, TrainedTimesSettings
from fewstep.utils.errors import FewstepError

_SAME_TIME = 2e-3  # sigma in float32 tells times apart no better than to some 1e-4


@dataclass(frozen=True, eq=False)
class TrainedTimes:
    """Shift of a model with T trained times: base sigma u -> the sigma of time round(T u) - 1.

    On [1, 0.75, 0.5, 0.25] these are the times 999, 749, 499 and 249 of a "trailing" schedule
    (Lin et al. 2023, arXiv 2305.08891, Table 2). Every grid has trained times only.

    Attributes:
        table: Sigma on our path of each trained time, increasing, [T], float64, on the CPU.
    """

    table: Tensor

    def times(self, base: Tensor | Sequence[float]) -> Tensor:
        """Trained times 0..T-1 of base sigmas, int64, [N]."""
        # Always in float32, so that a list and a tensor round alike.
        base = torch.as_tensor(base, dtype=torch.float32)
        count = len(self.table)
        return (base * count).round().long().sub(1).clamp(0, count - 1)

    def __call__(self, sigmas: Sigmas) -> Sigmas:
        """Shifted sigmas: a list for a list, a tensor of the same shape for a tensor."""
        if isinstance(sigmas, Tensor):
            return self.table.to(sigmas)[self.times(sigmas)]
        return [float(sigma) for sigma in self.table[self.times(sigmas)]]


class VariancePreserving(Backbone):
    """A backbone whose network predicts eps or v on the variance-preserving path."""

    prediction: ClassVar[str] = "eps"
    schedulers = TRAINED_TIMES

    def __init__(self, pipe: DiffusionPipeline, source: Path) -> None:
        """Wraps the pipeline; the trained times are read from its scheduler.

        Raises:
            FewstepError: The scheduler is not one of a variance-preserving model.
        """
        super().__init__(pipe, source)
        self.euler = _euler_of(pipe.scheduler, self.scheduler_settings, source)
        self.alphas_cumprod = self.euler.alphas_cumprod.double()
        a, b = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        self._shift = TrainedTimes(sigma_from_vp(a, b))

    @abstractmethod
    def predict(self, net: nn.Module, x_vp: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The network's prediction, of the scheduler's `prediction_type`: float32, as x_vp.

        Args:
            net: Any network of this architecture.
            x_vp: Points of the variance-preserving path, [B, C, H, W], float32.
            time: Trained times in 0..T-1, not always integers, [B].
            cond: Encoded prompts of the same batch.
        """

    def velocity(self, net: nn.Module, xt: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """See `Backbone.velocity`; Eq. 6-8, exact at every sigma of the trained range.

        Beyond that range, the network is evaluated at the nearest trained time, and the velocity is
        the one that leads from xt to its x0. The input keeps the variance that it was trained on.
        """
        time, known = vp_time(sigma, self.alphas_cumprod.to(sigma, non_blocking=True))
        whole = time.round()
        time = torch.where((time - whole).abs() < _SAME_TIME, whole, time)
        x_vp = vp_from_flow(xt, sigma)
        prediction = self.predict(net, x_vp, time, cond)
        return velocity_from_x0(xt, self._x0(x_vp, prediction, known), sigma)

    def _x0(self, x_vp: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
        """Clean latent of the network's prediction at a trained sigma."""
        a, b = (expand(coefficient, x_vp) for coefficient in vp_from_sigma(sigma))
        if self.euler.config["prediction_type"] == "v_prediction":
            return a * x_vp - b * prediction
        return (x_vp - b * prediction) / a

    def shift(self, height: int, width: int) -> Shift:
        """See `Scheduled.shift`: the sigmas of trailing times, at any size."""
        return self._shift

    def effective_shift(
        self, value: float | None, height: int, width: int, *, terminal: Terminal = "model"
    ) -> Shift:
        """See `Scheduled.effective_shift`; only the model's own."""
        for name, wanted in (("shift", value), ("terminal", terminal)):
            if isinstance(wanted, float | int):
                raise FewstepError(
                    f"grid.{name}: the schedulers of {self.name} walk trained times and have no "
                    f"{name}; leave it out",
                    code="unsupported",
                )
        return self._shift

    def noise(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """See `Backbone.noise`: ``sigma eps`` at the first sigma, which is below 1."""
        return self._shift([1.0])[0] * super().noise(height, width, generator)

    def student_scheduler(
        self, shift: float | None = None, terminal: Terminal = "model"
    ) -> EulerDiscreteScheduler:
        """Euler's method with the teacher's table of times, trailing; it starts from sigma eps.

        In its coordinates x_vp / a, its step equals ours; other solvers are of higher order or
        space the times differently.
        """
        return EulerDiscreteScheduler.from_config(self.euler.config)

    def needs_scheduler(self, wanted: Any) -> bool:
        """See `Scheduled.needs_scheduler`; models come with other solvers or other spacings."""
        return True

    def stock_call(self, base_sigmas: list[float], height: int, width: int) -> dict[str, Any]:
        """See `Backbone.stock_call`; timesteps, as these pipelines give sigmas another meaning."""
        call = super().stock_call(base_sigmas, height, width)
        del call["sigmas"]
        return {"timesteps": self._shift.times(base_sigmas).tolist()} | call

    @property
    def size_multiple(self) -> int:
        """See `Backbone.size_multiple`; the stock pipelines insist on 8."""
        return 8

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; the scale is undone in the autoencoder's precision."""
        vae = self.pipe.vae
        return decode_images(vae, latents.to(vae.dtype) / vae.config.scaling_factor)


def _euler_of(
    scheduler: Any, settings: TrainedTimesSettings, source: Path
) -> EulerDiscreteScheduler:
    """Euler's method with the trained times of a pipeline's own scheduler.

    Raises:
        FewstepError: The scheduler has other times than its settings say.
    """
    # At zero terminal signal to noise it keeps a little signal, so that sigma stays below 1.
    euler = EulerDiscreteScheduler(**settings.model_dump(), timestep_spacing="trailing")
    theirs = scheduler.alphas_cumprod.double()
    if theirs.shape != euler.alphas_cumprod.shape or not torch.allclose(
        theirs, euler.alphas_cumprod.double(), atol=1e-6
    ):
        raise FewstepError(
            f"{source}: {type(scheduler).__name__} has times that EulerDiscreteScheduler cannot"
            " repeat; save the pipeline with a DDIMScheduler",
            code="unsupported",
        )
    return euler
