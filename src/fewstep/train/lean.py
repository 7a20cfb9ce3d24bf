"""AdamW that needs less memory: moments in few bits, bfloat16 weights, moments on the host.

It goes from parameter to parameter, so that only one's moments are whole, and on the device, at a
time. What it rounds, weights and moments, it rounds at random: an update below half a step would
otherwise never be seen. The random values are functions of (seed, name, update), so that a resumed
run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fewstep.randomness import Draws
from fewstep.rounding import generator_on, round_at_random
from fewstep.train.offload import at_home, settle

BLOCK = 256  # numbers that share a scale
_SMALL = 4096  # below it a parameter's moments stay float32: there is nothing to win
_TINY = 1e-30
_FP8 = 448.0  # largest number of float8_e4m3, whose smallest is 2^-9

Stored = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How moments are stored, in blocks with one scale each.

    Steps are not even but powers, so that small numbers are told apart: squares of an even grid for
    the first moment, fourth powers for the second, which is never rounded down to 0.

    Attributes:
        floating: Floats of 8 bits in place of a grid; of the second moment, its square root.
    """

    floating: bool = False

    def fits(self, size: int) -> bool:
        """Whether a parameter of so many numbers is stored like this."""
        return size >= _SMALL and size % BLOCK == 0

    def encode(self, x: Tensor, generator: torch.Generator, *, signed: bool) -> tuple[Tensor, ...]:
        """Codes, uint8, and scales, float32 [blocks, 1], of float32 numbers."""
        blocks = x.view(-1, BLOCK)
        scales = blocks.abs().amax(1, keepdim=True).clamp_min(_TINY)
        share = blocks / scales
        if self.floating:
            return _floats(share, generator, signed=signed), scales
        most, power = self._grid(signed)
        below = (share.abs() ** (1 / power) * most).floor_().clamp_(max=most - 1)
        low, high = (below / most) ** power, ((below + 1) / most) ** power
        chance = torch.rand(share.shape, generator=generator, device=x.device)
        level = below + (chance < (share.abs() - low) / (high - low))
        if signed:
            codes = level * share.sign() + most
        else:
            codes = torch.where(share > 0, level.clamp_min(1), level)
        return codes.to(torch.uint8).flatten(), scales

    def decode(self, codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
        """The numbers that the codes stand for, flat, float32."""
        if self.floating:
            share = codes.view(torch.float8_e4m3fn).float().view(-1, BLOCK) / _FP8
            return (share if signed else share.square()).mul_(scales).flatten()
        most, power = self._grid(signed)
        level = codes.float().view(-1, BLOCK)
        if signed:
            level -= most
        return ((level.abs() / most) ** power * level.sign()).mul_(scales).flatten()

    def _grid(self, signed: bool) -> tuple[int, int]:
        """Steps above zero, and the power that spreads them."""
        return (127, 2) if signed else (255, 4)


def _floats(share: Tensor, generator: torch.Generator, *, signed: bool) -> Tensor:
    values = (share if signed else share.sqrt()) * _FP8
    values = round_at_random(values, generator, bits=20).clamp_(-_FP8, _FP8)
    if not signed:
        values = torch.where(share > 0, values.clamp_min(2.0**-9), values)
    return values.to(torch.float8_e4m3fn).view(torch.uint8).flatten()


FORMATS: Mapping[str, Format | None] = {
    "adamw": None,
    "adamw8bit": Format(),
    "adamwfp8": Format(floating=True),
}
"""Moments by name of the optimizer; None is float32."""


class LeanAdamW(torch.optim.Optimizer):
    """AdamW as torch computes it, with moments in any of `FORMATS`, on the device or the host.

    In float32 it is, host or not, bit for bit what torch's own does in one pass.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        moments: Format | None,
        on_host: bool,
        draws: tuple[int, str],
        **settings: Any,
    ) -> None:
        """Starts with empty moments.

        Args:
            parameters: float32 or bfloat16; the latter are rounded at random.
            moments: How they are stored; None is float32.
            on_host: Whether they are kept there.
            draws: Seed and name of the random values.
            settings: lr, betas, eps, weight_decay, as torch's AdamW takes them.
        """
        self._moments, self._on_host, self._draws = moments, on_host, draws
        super().__init__(parameters, {"update": 0, **settings})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient; number `update` of its group."""
        for group in self.param_groups:
            seed, name = self._draws
            source = Draws(seed, group["update"]).shared(name)
            parameters = [p for p in group["params"] if p.grad is not None]
            devices = {p.device for p in parameters}
            generators = {device: generator_on(device, source) for device in devices}
            for parameter in parameters:
                self._move(parameter, group, generators[parameter.device])
            for device in devices if self._on_host else ():
                settle(device)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Takes over moments as they are; torch's own would cast codes to floats."""
        order = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, stored in state_dict["state"].items():
            home = self._home(order[number])
            self.state[order[number]] = {key: home(value) for key, value in stored.items()}

    def _move(self, parameter: Tensor, group: Mapping[str, Any], rng: torch.Generator) -> None:
        assert parameter.grad is not None
        stored = self.state[parameter]
        step, mean, square = self._bring(stored, parameter)
        if parameter.dtype == torch.float32 and self._moments is None:
            _adamw(parameter, parameter.grad, (mean, square, step), group)
        else:
            weight = parameter.float()
            _adamw(weight, parameter.grad.float(), (mean, square, step), group)
            low = parameter.dtype != torch.float32
            parameter.copy_(round_at_random(weight, rng) if low else weight)
        self._send(stored, parameter, (step, mean, square), rng)

    def _bring(self, stored: Stored, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Number of updates and both moments as float32, on the parameter's device."""
        device = parameter.device
        if not stored:
            zeros = torch.zeros_like(parameter, dtype=torch.float32)
            return torch.zeros((), device=device), zeros, zeros.clone()
        here = {key: value.to(device, non_blocking=True) for key, value in stored.items()}
        if not self._coded(parameter):
            return here["step"], here["exp_avg"], here["exp_avg_sq"]
        assert self._moments is not None
        mean, square = (
            self._moments.decode(here[key], here[f"{key}.scales"], signed=signed)
            for key, signed in (("exp_avg", True), ("exp_avg_sq", False))
        )
        return here["step"], mean.view_as(parameter), square.view_as(parameter)

    def _send(
        self, stored: Stored, parameter: Tensor, found: tuple[Tensor, ...], rng: torch.Generator
    ) -> None:
        """Store what `_bring` brought; nothing is copied that is at home already."""
        step, mean, square = found
        values = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        if self._coded(parameter):
            assert self._moments is not None
            for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
                coded = self._moments.encode(values[key].flatten(), rng, signed=signed)
                values[key], values[f"{key}.scales"] = coded
        home = self._home(parameter)
        for key, value in values.items():
            if key not in stored:
                stored[key] = home(value)
            elif stored[key] is not value:
                stored[key].copy_(value, non_blocking=True)

    def _coded(self, parameter: Tensor) -> bool:
        return self._moments is not None and self._moments.fits(parameter.numel())

    def _home(self, parameter: Tensor) -> Any:
        if not self._on_host:
            return lambda value: value.to(parameter.device, copy=True)
        return lambda value: at_home(value.to(parameter.device))


def _adamw(
    weight: Tensor, grad: Tensor, state: tuple[Tensor, Tensor, Tensor], group: Mapping[str, Any]
) -> None:
    """Torch's own update of one float32 tensor, in place, in one pass where that exists."""
    mean, square, step = state
    fused = weight.device.type in ("cpu", "cuda")
    adamw(
        [weight],
        [grad],
        [mean],
        [square],
        [],
        [step],
        fused=fused,
        foreach=False,
        capturable=not fused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
