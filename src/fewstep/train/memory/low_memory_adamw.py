"""AdamW in less memory: moments of 8 bits by torchao, or float32 moments in the host's memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fewstep.core.noise import Draws
from fewstep.train.memory.offload import synchronize, to_host
from fewstep.utils.errors import FewstepError

KINDS: Mapping[str, str] = {
    "adamw": "_AdamW",
    "adamw8bit": "AdamW8bit",
    "adamwfp8": "AdamWFp8",
}
"""Name in a recipe -> torchao's class; its plain one is used for bfloat16 weights only."""
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # name -> whether values may be negative


class LowMemoryAdamW(torch.optim.Optimizer):
    """Mixin for torchao's optimizers: deterministic random values, moments that can be saved.

    bfloat16 weights are rounded stochastically, so that updates below half a step are kept in
    expectation. The random values are functions of (seed, name, update).

    Attributes:
        draws: Seed and name of the random values.
    """

    draws: tuple[int, str]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter with a gradient; the first group holds the `update`'s number."""
        seed, name = self.draws
        source = Draws(seed, self.param_groups[0].get("update", 0)).shared(name)
        devices = {p.device for group in self.param_groups for p in group["params"]}
        cards = [device for device in devices if device.type == "cuda"]
        # torchao compiles its update, which on a CPU needs a C++ compiler: run it uncompiled.
        eager = torch.compiler.set_stance("force_eager") if not cards else nullcontext()
        with torch.random.fork_rng(cards), eager:
            torch.manual_seed(source.initial_seed())
            super().step()

    def stored(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's moments as plain tensors: ``exp_avg``, or its ``.codes`` and ``.scale``."""
        tensors: dict[str, Tensor] = {}
        for key, value in self.state.get(parameter, {}).items():
            tensors |= _parts(key, value)
        return tensors

    def restore(self, parameter: Tensor, stored: Mapping[str, Tensor]) -> None:
        """Sets a parameter's moments to what `stored` returned."""
        state = {"step": stored["step"].to("cpu", copy=True)}
        for key, signed in _MOMENTS.items():
            state[key] = self._new_buffer(parameter, signed)
            for name, part in _parts(key, state[key]).items():
                part.copy_(stored[name])
        self.state[parameter] = state

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """A moment of zeros: quantized, or float32 whatever the dtype of the weights."""
        return super()._new_buffer(p.float(), signed)  # type: ignore[misc]


def _parts(key: str, value: Any) -> dict[str, Tensor]:
    if not hasattr(value, "codes"):
        return {key: value}
    return {f"{key}.codes": value.codes, f"{key}.scale": value.scale}


def low_memory_adamw(
    name: str, parameters: Iterable[Tensor], draws: tuple[int, str], settings: Mapping[str, Any]
) -> LowMemoryAdamW:
    """AdamW of torchao.

    Args:
        name: Key of `KINDS`.
        parameters: float32 or bfloat16.
        draws: Seed and name of the random values.
        settings: lr, betas, eps, weight_decay, as torch's AdamW takes them.

    Raises:
        FewstepError: torchao is not installed.
    """
    try:
        from torchao import optim
    except ImportError as error:
        raise FewstepError(
            f"optimizer.name: {name} needs torchao for this; pip install 'fewstep[quant]', "
            "or take adamw with float32 weights",
            code="missing-dependency",
        ) from error
    kind = type("LowMemoryAdamW", (LowMemoryAdamW, getattr(optim, KINDS[name])), {"draws": draws})
    return kind(parameters, bf16_stochastic_round=True, **settings)


class HostAdamW(torch.optim.Optimizer):
    """AdamW with float32 moments in the computer's memory, moved to the device one by one.

    The update is torch's own on the parameters' device, and bitwise that of moments which stay
    there. (torchao's offloading updates on the CPU instead, and keeps the weights there, too.)
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter with a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                self._update(parameter, group)
            for device in {p.device for p in parameters}:
                synchronize(device)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the moments; they stay float32 in the computer's memory."""
        order = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, stored in state_dict["state"].items():
            like = order[number].device
            self.state[order[number]] = {k: to_host(v.to(like)) for k, v in stored.items()}

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        assert parameter.grad is not None
        stored, device = self.state[parameter], parameter.device
        if not stored:
            stored["step"] = to_host(torch.zeros((), device=device))
            for key in _MOMENTS:
                stored[key] = to_host(torch.zeros_like(parameter))
        moved = {key: value.to(device, non_blocking=True) for key, value in stored.items()}
        _adamw(parameter, parameter.grad, moved, group)
        for key, value in moved.items():
            if value is not stored[key]:
                stored[key].copy_(value, non_blocking=True)


def _adamw(
    weight: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
) -> None:
    """PyTorch's own update of one float32 tensor, in place, fused where it can."""
    fused = weight.device.type in ("cpu", "cuda")
    adamw(
        [weight],
        [grad],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
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
