"""Sites: where the student is asked. An objective's first choice, Eq. 20.

A site is called as ``site(anchor, draws, indices) -> (xt [B, ...], sigma [B])``. Equal sites give
equal points within a step, so that objectives can share one evaluation of the student.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fewstep.core.flow import euler_step
from fewstep.core.noise import Draws, renoise
from fewstep.core.schedules import Law, Uniform
from fewstep.core.types import Anchor

_NO_EXTRA = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, config=_NO_EXTRA)
class AtAnchor:
    """The anchor itself, Eq. 20a."""

    name: Literal["anchor"] = field(default="anchor", repr=False)

    def __call__(self, anchor: Anchor, draws: Draws, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [B, ...] and sigma [B] of the anchor."""
        return anchor.xt, anchor.sigma


@dataclass(frozen=True, config=_NO_EXTRA)
class AlongVelocity:
    """The anchor moved along its simulated velocity to a random sigma, Eq. 20b.

    The new sigma may lie above or below the anchor's: off the grid, but on the student's path.
    """

    law: Law = Uniform()
    """Law of the sigma that it is moved to."""
    name: Literal["along_velocity"] = field(default="along_velocity", repr=False)

    def __call__(self, anchor: Anchor, draws: Draws, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Moved latent [B, ...] and its sigma [B]."""
        sigma = self.law(draws.uniform(f"{self}/sigma", indices), anchor.sigma)
        return euler_step(anchor.xt, anchor.velocity, anchor.sigma, sigma), sigma


@dataclass(frozen=True, config=_NO_EXTRA)
class FreshNoise:
    """The anchor's x0 under fresh noise at a random sigma, Eq. 20c."""

    law: Law = Uniform()
    """Law of the sigma that it is noised to."""
    name: Literal["fresh_noise"] = field(default="fresh_noise", repr=False)

    def __call__(self, anchor: Anchor, draws: Draws, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Re-noised latent [B, ...] and its sigma [B]."""
        noised = renoise(
            anchor.x0,
            self.law,
            anchor_sigma=anchor.sigma,
            name=str(self),
            draws=draws,
            indices=indices,
        )
        return noised.xt, noised.sigma


Site: TypeAlias = Annotated[AtAnchor | AlongVelocity | FreshNoise, Field(discriminator="name")]
"""Any of the above; in a recipe a mapping such as ``{name: along_velocity, law: ...}``."""
