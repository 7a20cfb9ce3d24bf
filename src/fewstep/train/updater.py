"""An optimizer with what belongs to it: warm-up, clipping, and the refusal of non-finite values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config import OptimizerRecipe
from fewstep.errors import FewstepError
from fewstep.train.lean import HostAdamW, Lean, lean
from fewstep.train.rate import CONSTANT, Rate

_FUSED = frozenset({"cpu", "cuda"})
"""Kinds of devices with an AdamW that does all of an update in one pass over memory."""


class NonFiniteError(FewstepError):
    """A loss or gradient is not a number or infinite; raised before the optimizer has moved."""


def _in_one_pass(parameters: Iterable[Tensor]) -> dict[str, bool]:
    """How AdamW goes over its parameters: in one pass where that exists, else in a few."""
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
        rate: Rate = CONSTANT,
        on_host: bool = False,
        seed: int = 0,
    ) -> None:
        """Starts with empty moments.

        Args:
            role: Whose parameters they are.
            parameters: By name.
            recipe: Which optimizer.
            rate: Factor of the recipe's rate.
            on_host: Moments live in the computer's memory.
            seed: Of what is rounded at random.
        """
        self.role = role
        self.updates = 0
        self._parameters = dict(parameters)
        self._recipe = recipe
        self._rate = rate
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
            return lean(recipe.name, parameters, (seed, f"optimizer/{self.role}"), settings)
        if on_host:
            return HostAdamW(parameters, settings)
        return torch.optim.AdamW(parameters, **settings, **_in_one_pass(parameters))

    def lr_at(self, step: int) -> float:
        """Learning rate of the next update, if it happens in this iteration, counted from 1."""
        return self._recipe.lr * self._rate(self.updates + 1, step)

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
        if isinstance(self._adamw, Lean):
            order = list(self._parameters.values())
            for number, stored in state.items():
                self._adamw.restore(order[number], stored)
        else:
            groups = self._adamw.state_dict()["param_groups"]
            self._adamw.load_state_dict({"state": state, "param_groups": groups})
        self.updates = updates

    def _moments(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        if isinstance(self._adamw, Lean):
            return self._adamw.stored(parameter)
        return self._adamw.state.get(parameter, {})

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
