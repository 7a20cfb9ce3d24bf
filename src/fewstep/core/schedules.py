"""Sigma laws, anchor grids and model shifts: small frozen objects, validated when built.

Each carries a ``name`` so that a recipe can spell it as a mapping, e.g.
``{name: logit_normal, mean: 0.0, std: 1.0}``. Equation numbers refer to ``docs/math.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, replace
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

import torch
from pydantic import ConfigDict, Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.02, 0.98
"""Range of every sampled sigma: at its ends x0 or eps can no longer be told from xt."""

# Strict field by field: a strict pydantic dataclass would not accept a recipe's mapping.
_NO_EXTRA = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Positive = Annotated[_Real, Field(gt=0)]
_Unit = Annotated[_Real, Field(ge=0, le=1)]
_Steps = Annotated[int, Field(strict=True, ge=1, le=1000)]
_GridShift = Annotated[_Real, Field(ge=1e-3, le=1e3)]
Sigmas = TypeVar("Sigmas", list[float], Tensor)


def clamp_sigma(sigma: Tensor) -> Tensor:
    """Sampled sigma kept inside [0.02, 0.98]: any shape."""
    return sigma.clamp(SIGMA_MIN, SIGMA_MAX)


# -------------------------------------------------------------------------- sigma laws, Eq. 9


@dataclass(frozen=True, config=_NO_EXTRA)
class Uniform:
    """s ~ U(low, high), Eq. 9a."""

    low: _Unit = 0.0
    """Lower end of the range."""
    high: _Unit = 1.0
    """Upper end of the range."""
    name: Literal["uniform"] = field(default="uniform", repr=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def __call__(self, u: Tensor, anchor_sigma: Tensor) -> Tensor:
        """Sigma from a uniform draw ``u`` in (0, 1): [B] -> [B]; the anchor plays no part."""
        return clamp_sigma(self.low + (self.high - self.low) * u)


@dataclass(frozen=True, config=_NO_EXTRA)
class UpToAnchor:
    """s ~ U(0, sigma_i): never noisier than the anchor, Eq. 9b."""

    name: Literal["up_to_anchor"] = field(default="up_to_anchor", repr=False)

    def __call__(self, u: Tensor, anchor_sigma: Tensor) -> Tensor:
        """Sigma from a uniform draw ``u`` in (0, 1) and the anchor's sigma: [B], [B] -> [B]."""
        return clamp_sigma(u * anchor_sigma)


@dataclass(frozen=True, config=_NO_EXTRA)
class LogitNormal:
    """s = sigmoid(n), n ~ N(mean, std^2), Eq. 9c."""

    mean: Annotated[_Real, Field(ge=-100, le=100)] = 0.0
    """Mean of the logits; below 0 for less noise."""
    std: Annotated[_Positive, Field(le=100)] = 1.0
    """Their standard deviation."""
    name: Literal["logit_normal"] = field(default="logit_normal", repr=False)

    def __call__(self, u: Tensor, anchor_sigma: Tensor) -> Tensor:
        """Sigma from a uniform draw ``u`` in (0, 1): [B] -> [B]; the anchor plays no part."""
        return clamp_sigma(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)))


Law: TypeAlias = Annotated[Uniform | UpToAnchor | LogitNormal, Field(discriminator="name")]
"""``law(u [B] in (0, 1), anchor_sigma [B]) -> sigma [B]`` in [0.02, 0.98]."""


# -------------------------------------------------------------------------- anchor grids, Eq. 10

Terminal: TypeAlias = Annotated[_Real, Field(gt=0, lt=1)] | Literal["model"] | None
"""Where a grid's last noise level before 0 is stretched to, Eq. 12c; None: it is not stretched."""


@dataclass(frozen=True, config=_NO_EXTRA)
class RandomGrid:
    """1.0 followed by N - 1 sorted draws of U(low, high), N ~ U{min_steps..max_steps}, Eq. 10.

    Sigmas are those before the shift, Eq. 12.
    """

    max_steps: _Steps = 28
    """Largest number of steps N."""
    low: _Unit = 0.25
    """Lower end of the range that sigmas after the first are drawn from."""
    high: _Unit = 0.95
    """Upper end of that range."""
    min_steps: _Steps = 1
    """Smallest number of steps N."""
    stratified: StrictBool = False
    """Place one draw in each of N - 1 equal cells of the range instead of drawing all freely."""
    shift: _GridShift | None = None
    """Static shift of the student's grid, Eq. 12a, in place of the model's own; null keeps that."""
    terminal: Terminal = "model"
    """Noise level to which the last one of the student's grid is stretched, Eq. 12c. `model`: the
    end that the model's own shift has, if any (`shift_terminal` of its scheduler). null: none,
    which is better for fewer than four steps."""
    name: Literal["random"] = field(default="random", repr=False)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps ({self.min_steps}) must not exceed max_steps ({self.max_steps})"
            )
        return self

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Base sigmas [N], downwards from 1, without the model's shift and the final 0."""
        high = self.max_steps + 1
        steps = int(torch.randint(self.min_steps, high, (), generator=generator))
        u = torch.rand(steps - 1, generator=generator)
        if self.stratified:
            u = (torch.arange(steps - 1) + u) / max(steps - 1, 1)
        inner = (self.low + (self.high - self.low) * u).sort(descending=True).values
        return torch.cat([torch.ones(1), inner])


@dataclass(frozen=True, config=_NO_EXTRA)
class FixedGrid:
    """The same base sigmas every time, downwards from at most 1."""

    sigmas: Annotated[tuple[_Real, ...], Field(min_length=1)] = (1.0, 0.75, 0.5, 0.25)
    """Noise levels before the shift, strictly falling, inside (0, 1]; the final 0 is appended."""
    shift: _GridShift | None = None
    """Static shift of the student's grid, Eq. 12a, in place of the model's own; null keeps that."""
    terminal: Terminal = "model"
    """Noise level to which the last one of the student's grid is stretched, Eq. 12c. `model`: the
    end that the model's own shift has, if any (`shift_terminal` of its scheduler). null: none,
    which is better for fewer than four steps."""
    name: Literal["fixed"] = field(default="fixed", repr=False)

    @model_validator(mode="after")
    def _downwards(self) -> Self:
        ordered = all(a > b for a, b in pairwise(self.sigmas))
        if not ordered or self.sigmas[0] > 1 or self.sigmas[-1] <= 0:
            raise ValueError(f"sigmas must fall strictly inside (0, 1], got {list(self.sigmas)}")
        return self

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Base sigmas [N]; the generator plays no part."""
        return torch.tensor(self.sigmas)


Grid: TypeAlias = Annotated[RandomGrid | FixedGrid, Field(discriminator="name")]
"""``grid(generator) -> base sigmas [N]``, downwards, without the model's shift and the final 0."""


def few_step_sigmas(steps: int) -> list[float]:
    """Base grid of inference, Eq. 11: ``[1, 1 - 1/n, ..., 1/n]``.

    Args:
        steps: Number of steps n.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [1 - i / steps for i in range(steps)]


# -------------------------------------------------------------------------- model shifts, Eq. 12

Shift: TypeAlias = Callable[[Tensor], Tensor]
"""What a model does to a base grid; the shifts below also map a list to a list."""


@dataclass(frozen=True, config=_NO_EXTRA)
class StaticShift:
    """sigma -> shift sigma / (1 + (shift - 1) sigma), Eq. 12a (3 for Stable Diffusion 3)."""

    shift: _Positive = 1.0
    name: Literal["static"] = field(default="static", repr=False)

    def __call__(self, sigmas: Sigmas) -> Sigmas:
        """Shifted sigmas: a list for a list, a tensor of the same shape for a tensor."""
        if isinstance(sigmas, Tensor):
            return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        return [self.shift * s / (1 + (self.shift - 1) * s) for s in sigmas]


@dataclass(frozen=True, config=_NO_EXTRA)
class ExponentialShift:
    """Static shift of e^mu, Eq. 12b; then, on request, stretched to end at ``terminal``, Eq. 12c.

    The stretch looks at the last sigma given, so with ``terminal`` pass whole grids. A grid that
    ends at 1 (one step) has nothing to stretch and is left alone.
    """

    mu: _Real
    terminal: Annotated[_Real, Field(gt=0, lt=1)] | None = None
    name: Literal["exponential"] = field(default="exponential", repr=False)

    def __call__(self, sigmas: Sigmas) -> Sigmas:
        """Shifted sigmas: a list for a list, a tensor of the same shape for a tensor."""
        shifted = StaticShift(math.exp(self.mu))(sigmas)
        if self.terminal is None or len(shifted) == 0 or float(shifted[-1]) == 1.0:
            return shifted
        stretch = (1 - self.terminal) / (1 - float(shifted[-1]))
        if isinstance(shifted, Tensor):
            return 1 - (1 - shifted) * stretch
        return [1 - (1 - s) * stretch for s in shifted]


def with_terminal(shift: Shift, terminal: Terminal) -> Shift:
    """A static or exponential shift that ends elsewhere; "model" leaves it as it is."""
    if terminal == "model":
        return shift
    if isinstance(shift, StaticShift):
        return shift if terminal is None else ExponentialShift(math.log(shift.shift), terminal)
    return replace(shift, terminal=terminal) if isinstance(shift, ExponentialShift) else shift


def with_shift(base: Tensor, shift: Shift) -> Tensor:
    """Grid the Euler loop walks: base sigmas [N] shifted, and a final 0 appended, [N + 1]."""
    return torch.cat([shift(base), base.new_zeros(1)])
