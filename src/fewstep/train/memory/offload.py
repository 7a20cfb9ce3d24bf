"""Offloading: what stays in the computer's memory and is moved to the device when needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.config import Recipe
from fewstep.models.base import Backbone
from fewstep.models.stubs import ConfigStub
from fewstep.utils.errors import FewstepError

HOST = torch.device("cpu")


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the computer's memory; page-locked if the tensor is on a GPU, to move it fast."""
    copy = torch.empty_like(tensor, device=HOST, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor)


def synchronize(device: torch.device) -> None:
    """Waits until all transfers from and to a GPU have ended."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def refuse_sharded(recipe: Recipe) -> None:
    """Refuses the memory settings that do not work with sharded weights.

    Raises:
        FewstepError: The recipe uses one of them.
    """
    memory = recipe.memory
    keys = ("base", "trained_dtype", "offload_optimizer", "offload_ema")
    refused = [f"memory.{key}" for key in keys if getattr(memory, key)]
    for key in ("student", "fake_teacher"):
        if getattr(recipe, key).optimizer.name != "adamw":
            refused.append(f"{key}.optimizer.name")
    if refused:
        raise FewstepError(
            f"{refused[0]}: not with weights split over processes; remove it or set "
            "parallel.shard=none",
            code="unsupported",
        )


def offload_vae(backbone: Backbone) -> None:
    """Moves a backbone's VAE to the computer's memory."""
    if isinstance(vae := getattr(backbone.pipe, "vae", None), nn.Module):
        vae.to(HOST)


@contextmanager
def without_network(backbone: Backbone) -> Iterator[None]:
    """Context in which moving a backbone moves everything but its network.

    The network's configuration stays readable: SD3 without T5 takes the width of texts from it.
    """
    parts = vars(backbone.pipe)  # an assignment would change the pipeline's configuration
    net = parts[backbone.net_name]
    parts[backbone.net_name] = ConfigStub(net)
    try:
        yield
    finally:
        parts[backbone.net_name] = net


@contextmanager
def vae_on_device(backbone: Backbone) -> Iterator[None]:
    """Context in which the VAE is on the network's device; an offloaded one is moved back after."""
    vae: Any = getattr(backbone.pipe, "vae", None)
    offloaded = isinstance(vae, nn.Module) and next(vae.parameters()).device != backbone.device
    if offloaded:
        vae.to(backbone.device)
    try:
        yield
    finally:
        if offloaded:
            vae.to(HOST)
