"""Optimizers with what belongs to them: learning rate schedule, clipping, exponential average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config import OptimizerRecipe
from fewstep.train.memory.low_memory_adamw import HostAdamW, LowMemoryAdamW, low_memory_adamw
from fewstep.train.memory.offload import synchronize, to_host
from fewstep.utils.errors import FewstepError


@dataclass(frozen=True)
class LRSchedule:
    """Factor of a learning rate: rises over the first updates, stays, falls over the last steps.

    The published settings rise and stay (arXiv 2605.06376).

    Attributes:
        warmup: Updates over which it rises linearly to 1.
        cooldown: Share of the iterations, at the end, over which it falls linearly towards 0.
        steps: Iterations of the run; looked at where there is a cool-down.
    """

    warmup: int = 0
    cooldown: float = 0.0
    steps: int = 0

    def __call__(self, update: int, step: int) -> float:
        """Factor of the update counted as `update`, in the iteration `step`, both from 1."""
        rising = update / self.warmup if self.warmup else 1.0
        last = self.cooldown * self.steps
        falling = (self.steps + 1 - step) / last if last else 1.0
        return max(min(1.0, rising, falling), 0.0)


CONSTANT = LRSchedule()


class Ema:
    """Exponential moving average with a decay that starts low: min((1 + n) / (10 + n), max_decay).

    Attributes:
        weights: name -> averaged weight, float32.
        updates: Updates so far, n.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        max_decay: float = 0.999,
        *,
        on_host: bool = False,
    ) -> None:
        """Starts as a copy of the parameters; `on_host` keeps it in host memory."""
        self._parameters = dict(parameters)
        self._max_decay = max_decay
        self._on_host = on_host
        copy = to_host if on_host else torch.clone
        self.weights = {name: copy(p.detach().float()) for name, p in self._parameters.items()}
        self.updates = 0

    @property
    def decay(self) -> float:
        """Share of the old average that the next update keeps."""
        return min((1 + self.updates) / (10 + self.updates), self._max_decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current parameters."""
        share = 1 - self.decay
        if self._plain:
            now: list[Tensor] = list(self._parameters.values())
            torch._foreach_lerp_(list(self.weights.values()), now, share)
        else:
            for name, parameter in self._parameters.items():
                mean = self.weights[name].to(parameter.device, non_blocking=True)
                self.weights[name].copy_(mean.lerp_(parameter.float(), share), non_blocking=True)
                if self._on_host:
                    synchronize(parameter.device)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters hold the average; one of them is copied at a time.

        Parameters of lower precision, which cannot hold the mean itself, are set aside.
        """
        own = {name: p.detach().clone() for name, p in self._low.items()}
        self._exchange()
        try:
            yield
        finally:
            self._exchange(own)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a saved average."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.updates = updates

    @property
    def _low(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._parameters.items() if p.dtype != torch.float32}

    @property
    def _plain(self) -> bool:
        """Whether averages and parameters have one precision and one device."""
        return not self._on_host and not self._low

    @torch.no_grad()
    def _exchange(self, own: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        # Value by value: sharded parameters are also held by what shards them.
        low = self._low
        for name, parameter in self._parameters.items():
            if name in low:
                parameter.copy_(own.get(name, self.weights[name]))
                continue
            held = self.weights[name].clone()
            self.weights[name].copy_(parameter)
            parameter.copy_(held)


_FUSED = frozenset({"cpu", "cuda"})
"""Kinds of devices for which torch has a fused AdamW."""


class NonFiniteError(FewstepError):
    """A loss or gradient is not a number or infinite; raised before the optimizer has moved."""

    default_code = "non-finite"


class DivergedError(FewstepError):
    """Training came apart, as the run's own figures say."""

    default_code = "diverged"


def _implementation(parameters: Iterable[Tensor]) -> dict[str, bool]:
    """Which of torch's implementations of AdamW to use: the fused one where it exists."""
    fused = all(p.device.type in _FUSED and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}


class Updater:
    """AdamW over named parameters, at a rate that may change over the run.

    Attributes:
        role: Whose parameters they are.
        updates: Updates so far.
    """

    def __init__(
        self,
        role: str,
        parameters: Mapping[str, nn.Parameter],
        recipe: OptimizerRecipe,
        *,
        lr_schedule: LRSchedule = CONSTANT,
        on_host: bool = False,
        seed: int = 0,
    ) -> None:
        """Starts with empty moments.

        Args:
            role: Whose parameters they are.
            parameters: By name.
            recipe: Which optimizer.
            lr_schedule: Factor of the recipe's rate.
            on_host: Moments live in the computer's memory.
            seed: Of what is rounded at random.
        """
        self.role = role
        self.updates = 0
        self._parameters = dict(parameters)
        self._recipe = recipe
        self._lr_schedule = lr_schedule
        self._adamw = self._optimizer(on_host, seed)

    def _optimizer(self, on_host: bool, seed: int) -> torch.optim.Optimizer:
        recipe, parameters = self._recipe, list(self._parameters.values())
        settings: dict[str, Any] = {
            "lr": recipe.lr,
            "betas": recipe.betas,
            "eps": recipe.eps,
            "weight_decay": recipe.weight_decay,
        }
        if recipe.name != "adamw" or any(p.dtype != torch.float32 for p in parameters):
            return low_memory_adamw(
                recipe.name, parameters, (seed, f"optimizer/{self.role}"), settings
            )
        if on_host:
            return HostAdamW(parameters, settings)
        return torch.optim.AdamW(parameters, **settings | _implementation(parameters))

    def lr_at(self, step: int) -> float:
        """Learning rate of the next update, if it happens in this iteration, counted from 1."""
        return self._recipe.lr * self._lr_schedule(self.updates + 1, step)

    def update(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Clip, step and clear the gradients that are there; returns their norm before clipping.

        Args:
            losses: Mean loss of each term, scalars; only looked at.
            step: The iteration, counted from 1.

        Raises:
            NonFiniteError: A loss or a gradient is not finite; nothing has moved.
        """
        with_grad = {name: p for name, p in self._parameters.items() if p.grad is not None}
        gradients = [p.grad for p in with_grad.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if hasattr(norm, "full_tensor"):  # of sharded gradients: every process needs all of it
            norm = norm.full_tensor()
        if not torch.stack([norm, *losses.values()]).isfinite().all():  # the one host sync
            raise NonFiniteError(self._diagnosis(losses, with_grad, step))
        nn.utils.clip_grads_with_norm_(with_grad.values(), self._recipe.clip, norm, foreach=True)
        lr = self.lr_at(step)
        for group in self._adamw.param_groups:
            group["update"] = self.updates
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self.updates += 1
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The moments, as ``role/moment/parameter``."""
        return {
            f"{self.role}/{moment}/{name}": value
            for name, parameter in self._parameters.items()
            for moment, value in self._moments(parameter).items()
        }

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from saved moments; tensors of other roles are left aside."""
        numbers = {name: i for i, name in enumerate(self._parameters)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            role, moment, name = key.split("/", 2)
            if role == self.role:
                state.setdefault(numbers[name], {})[moment] = value
        if isinstance(self._adamw, LowMemoryAdamW):
            order = list(self._parameters.values())
            for number, stored in state.items():
                self._adamw.restore(order[number], stored)
        else:
            groups = self._adamw.state_dict()["param_groups"]
            self._adamw.load_state_dict({"state": state, "param_groups": groups})
        self.updates = updates

    def _moments(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        if isinstance(self._adamw, LowMemoryAdamW):
            return self._adamw.stored(parameter)
        moments: Mapping[str, Tensor] = self._adamw.state.get(parameter, {})
        return moments

    def _diagnosis(
        self, losses: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], step: int
    ) -> str:
        wrong = [f"{term} ({float(loss)})" for term, loss in losses.items() if not loss.isfinite()]
        groups = [
            name
            for name, p in parameters.items()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        loss = f"loss of {', '.join(wrong)}" if wrong else f"gradient of {' + '.join(losses)}"
        at = f"{groups[0]} and {len(groups) - 1} more" if groups else "the norm of all"
        return (
            f"step {step}: the {loss} is not finite; parameters of the {self.role}: {at}. "
            "The optimizer has not moved"
        )
