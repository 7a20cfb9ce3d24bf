"""AdamW that needs less memory: torchao's with moments in few bits, torch's with moments away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fewstep.core.noise import Draws
from fewstep.train.memory.offload import at_home, settle
from fewstep.utils.errors import FewstepError

KINDS: Mapping[str, str] = {
    "adamw": "_AdamW",
    "adamw8bit": "AdamW8bit",
    "adamwfp8": "AdamWFp8",
}
"""torchao's optimizers by name; its plain one is for bfloat16 weights."""
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # name -> whether it has a sign


class LowMemoryAdamW(torch.optim.Optimizer):
    """What an optimizer of torchao needs here: deterministic draws, moments that can be saved.

    Weights in bfloat16 are rounded at random, where an update below half a step would otherwise be
    lost. The random values are functions of (seed, name, update).
    """

    draws: tuple[int, str]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient; number `update` of the first group."""
        seed, name = self.draws
        source = Draws(seed, self.param_groups[0].get("update", 0)).shared(name)
        devices = {p.device for group in self.param_groups for p in group["params"]}
        cards = [device for device in devices if device.type == "cuda"]
        # torchao compiles its update, which a processor without a compiler for C++ cannot.
        eager = torch.compiler.set_stance("force_eager") if not cards else nullcontext()
        with torch.random.fork_rng(cards), eager:
            torch.manual_seed(source.initial_seed())
            super().step()

    def stored(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's moments in plain tensors: ``exp_avg``, or its ``.codes`` and ``.scale``."""
        found: dict[str, Tensor] = {}
        for key, value in self.state.get(parameter, {}).items():
            found |= _parts(key, value)
        return found

    def restore(self, parameter: Tensor, stored: Mapping[str, Tensor]) -> None:
        """Take over what `stored` gave."""
        state = {"step": stored["step"].to("cpu", copy=True)}
        for key, signed in _MOMENTS.items():
            state[key] = self._new_buffer(parameter, signed)
            for name, part in _parts(key, state[key]).items():
                part.copy_(stored[name])
        self.state[parameter] = state

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """An empty moment; of low weights, too, float32 where it is not coded."""
        return super()._new_buffer(p.float(), signed)  # type: ignore[misc]


def _parts(key: str, value: Any) -> dict[str, Tensor]:
    if not hasattr(value, "codes"):
        return {key: value}
    return {f"{key}.codes": value.codes, f"{key}.scale": value.scale}


def low_memory_adamw(
    name: str, parameters: Iterable[Tensor], draws: tuple[int, str], settings: Mapping[str, Any]
) -> LowMemoryAdamW:
    """An optimizer of torchao.

    Args:
        name: Key of `KINDS`.
        parameters: float32 or bfloat16.
        draws: Seed and name of the random values.
        settings: lr, betas, eps, weight_decay, as torch's AdamW takes them.

    Raises:
        FewstepError: There is no torchao.
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
    """AdamW whose float32 moments live in the computer's memory, and visit one by one.

    The update is torch's own, on the parameters' device: bit for bit that without the visits.
    torchao's offloading updates on the processor instead, and has weights there, too.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                self._move(parameter, group)
            for device in {p.device for p in parameters}:
                settle(device)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over moments as they are, on the host."""
        order = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, stored in state_dict["state"].items():
            like = order[number].device
            self.state[order[number]] = {k: at_home(v.to(like)) for k, v in stored.items()}

    def _move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        assert parameter.grad is not None
        stored, device = self.state[parameter], parameter.device
        if not stored:
            stored["step"] = at_home(torch.zeros((), device=device))
            for key in _MOMENTS:
                stored[key] = at_home(torch.zeros_like(parameter))
        here = {key: value.to(device, non_blocking=True) for key, value in stored.items()}
        _adamw(parameter, parameter.grad, here, group)
        for key, value in here.items():
            if value is not stored[key]:
                stored[key].copy_(value, non_blocking=True)


def _adamw(
    weight: Tensor, grad: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
) -> None:
    """Torch's own update of one float32 tensor, in place, in one pass where that exists."""
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
