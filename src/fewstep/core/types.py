"""Frozen records that flow through the program, shapes documented per field; reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fewstep.core.flow import x0_from_velocity
from fewstep.core.transfer import to_device
from fewstep.utils.errors import unknown


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded prompts: named tensors whose first axis is the batch.

    Attributes:
        tensors: name -> [B, ...], whatever the backbone needs (text tokens, pooled text, masks).
        lengths: Tokens of each prompt that ``mask`` marks, [B], always on the CPU; None: unknown,
            or no mask. Some networks take shapes from them, and must not wait for the device.

    Raises:
        ValueError: No tensors, or batches of different sizes.
    """

    tensors: Mapping[str, Tensor]
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that all tensors agree on the batch."""
        sizes = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"conditioning tensors must share one batch size, got {sizes}")

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return len(next(iter(self.tensors.values())))

    def to(self, device: torch.device | str) -> Conditioning:
        """The same tensors on another device, see `transfer.to_device`."""
        moved = {name: to_device(tensor, device) for name, tensor in self.tensors.items()}
        return Conditioning(moved, self.lengths)

    def counted(self) -> Conditioning:
        """The same with `lengths`; waits for the device where they are not known yet."""
        if self.lengths is not None or "mask" not in self.tensors:
            return self
        return Conditioning(self.tensors, self.tensors["mask"].sum(1).cpu())

    def select(self, index: Tensor | slice) -> Conditioning:
        """Samples chosen by an index tensor [n] or a slice.

        The index is best on the CPU: nothing waits for a copy from there, and `lengths` are there.
        """

        def chosen(tensor: Tensor) -> Tensor:
            if isinstance(index, slice):
                return tensor[index]
            return tensor[to_device(index, tensor.device)]

        return self._map(chosen)

    def replace(self, **tensors: Tensor) -> Conditioning:
        """The same with other tensors, [B, ...], under names it has.

        Raises:
            ValueError: It has no tensor of such a name, or the batch differs.
        """
        for name in tensors:
            if name not in self.tensors:
                raise ValueError(f"conditioning has no {name!r}, only {sorted(self.tensors)}")
        return Conditioning({**self.tensors, **tensors}, self.lengths)

    def non_finite(self) -> str | None:
        """Name of the first tensor with a value that is not finite, if there is one."""
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                return name
        return None

    def repeat_interleave(self, n: int) -> Conditioning:
        """Each sample n times in a row: [B n, ...]."""
        return self._map(lambda tensor: tensor.repeat_interleave(n, dim=0))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Batches of equal names joined one after the other.

        Raises:
            ValueError: Nothing to join, or the names differ.
        """
        if len({frozenset(part.tensors) for part in parts}) != 1:
            names = [sorted(part.tensors) for part in parts]
            raise ValueError(f"conditionings to join must have the same names, got {names}")
        lengths = [part.lengths for part in parts if part.lengths is not None]
        return Conditioning(
            {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors},
            torch.cat(lengths) if len(lengths) == len(parts) else None,
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            {name: change(tensor) for name, tensor in self.tensors.items()},
            None if self.lengths is None else change(self.lengths),
        )


VelocityFn: TypeAlias = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""``velocity(xt [B, ...], sigma [B], cond) -> [B, ...]``: all the mathematics knows of a model."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """The point of a simulation that one iteration works at; one per sample.

    Attributes:
        xt: Latent x_i, [B, ...].
        sigma: Its noise level sigma_i, [B].
        sigma_next: Where the simulation's step from it leads, sigma_{i+1}; 0 is the end, [B].
        velocity: The student's velocity v_i there, [B, ...].
        x0: Clean latent it points at, x_i - sigma_i v_i, [B, ...].
        final: Where the simulation ended, [B, ...].
    """

    xt: Tensor
    sigma: Tensor
    sigma_next: Tensor
    velocity: Tensor
    x0: Tensor
    final: Tensor


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A walk along the student's own flow, from pure noise to a sample.

    Attributes:
        xt: Latent before each of the N steps, [N, B, ...].
        sigmas: Noise levels, the last one is 0, [N + 1].
        velocity: Velocity at each latent, [N, B, ...].
        final: Latent after the last step, [B, ...].
    """

    xt: Tensor
    sigmas: Tensor
    velocity: Tensor
    final: Tensor

    def pick(self, index: Tensor) -> Anchor:
        """The anchor each sample chose, Eq. 14.

        Args:
            index: Step number in 0..N-1 per sample, [B].
        """
        index = index.to(self.xt.device)
        rows = torch.arange(self.xt.shape[1], device=self.xt.device)
        xt, velocity = self.xt[index, rows], self.velocity[index, rows]
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        x0 = x0_from_velocity(xt, velocity, sigma)
        return Anchor(xt, sigma, sigma_next, velocity=velocity, x0=x0, final=self.final)


@dataclass(frozen=True, eq=False)
class Term:
    """What one objective has to say about a batch.

    Attributes:
        name: The objective's name.
        loss: Weighted loss per sample, with the graph to the student attached, [B].
        norm: How far the student is from what it is compared with, mean |difference| per sample,
            detached, [B]. Where the loss is divided by it (k, Eq. 18), after its floor.
        direction: Where the student's x0 is pulled, detached, [B, ...].
        x0: The student's clean latent at the objective's site, detached, [B, ...].
    """

    name: str
    loss: Tensor
    norm: Tensor
    direction: Tensor
    x0: Tensor


Reduction: TypeAlias = Literal["mean", "none"]


def per_sample(values: Tensor) -> Tensor:
    """Mean over all axes but the first: [B, ...] -> [B]."""
    return values.flatten(1).mean(1)


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Losses [B] as they are (``none``), or their mean, a scalar (``mean``).

    Raises:
        FewstepError: The reduction is neither of the two.
    """
    if reduction not in _REDUCTIONS:
        raise unknown("reduction", reduction, _REDUCTIONS)
    return _REDUCTIONS[reduction](losses)


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda losses: losses.mean(),
    "none": lambda losses: losses,
}
