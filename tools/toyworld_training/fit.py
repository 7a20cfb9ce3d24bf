"""The plain training loop behind every network of the tiny world: seeded, logged, resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.utils.hardware import denormals_flushed

Loss = Callable[[int], dict[str, Tensor]]  # step -> named losses; "loss" is the one minimised


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast; `average` sets the reach of the weight average, in shares of a run."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    decay_from: float = 0.6  # share of the steps after which the rate falls linearly to zero
    average: float = 0.02
    save_every: int = 200
    log_every: int = 50


def learning_rate(step: int, settings: FitSettings) -> float:
    """Warm-up, a constant stretch, then a straight line to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    start = settings.decay_from * settings.steps
    left = (settings.steps - step) / max(settings.steps - start, 1.0)
    return settings.lr * min(1.0, left)


@denormals_flushed()
def fit(net: nn.Module, loss: Loss, settings: FitSettings, folder: Path) -> nn.Module:
    """Trains `net` in place and returns it with averaged weights; continues `folder` if it can.

    `loss(step)` must depend on nothing but `step` and the weights: a resumed run repeats the rest.

    Args:
        net: What to train, by AdamW.
        loss: Named losses of a step.
        settings: How long and how fast.
        folder: For the log, and to continue from.

    Raises:
        FloatingPointError: at the first loss that is not finite, before the weights move.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        net.parameters(),
        lr=settings.lr,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    state_file, step = folder / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=_device(net))
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]
    began, first = time.monotonic(), step
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        losses = loss(step)
        if not math.isfinite(losses["loss"].item()):
            raise FloatingPointError(f"{folder.name}: loss is not finite at step {step}")
        net.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
        optimizer.step()
        step += 1
        _update_average(average, net, 1.0 / (1.0 + settings.average * step))
        if step % settings.log_every == 0 or step == settings.steps:
            row = {name: round(value.item(), 6) for name, value in losses.items()}
            row |= {"step": step, "grad_norm": round(float(norm), 4)}
            row["steps_per_second"] = round((step - first) / (time.monotonic() - began), 3)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % settings.save_every == 0 or step == settings.steps:
            state = {"net": net.state_dict(), "average": average, "step": step}
            state["optimizer"] = optimizer.state_dict()
            torch.save(state, folder / "state.tmp")
            (folder / "state.tmp").replace(state_file)
    net.load_state_dict(average)
    return net


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


@torch.no_grad()
def _update_average(average: dict[str, Tensor], net: nn.Module, rate: float) -> None:
    """Moves the average towards the weights; a rate ~ 1 / step lets its reach grow."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, rate)
        else:
            average[name].copy_(value)
