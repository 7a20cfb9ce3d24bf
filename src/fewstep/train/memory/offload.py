"""What lives in the computer's memory and visits the device only when it is needed."""

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


def at_home(tensor: Tensor) -> Tensor:
    """A copy on the host; page-locked where that makes the way to the tensor's device quick."""
    home = torch.empty_like(tensor, device=HOST, pin_memory=tensor.is_cuda)
    return home.copy_(tensor)


def settle(device: torch.device) -> None:
    """Wait until nothing is under way from or to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def refuse_sharded(recipe: Recipe) -> None:
    """Refuse what cannot be done with weights that are split over processes.

    Raises:
        FewstepError: The recipe wants it.
    """
    memory = recipe.memory
    keys = ("base", "trained_dtype", "offload_optimizer", "offload_ema")
    found = [f"memory.{key}" for key in keys if getattr(memory, key)]
    for key in ("student", "fake_teacher"):
        if getattr(recipe, key).optimizer.name != "adamw":
            found.append(f"{key}.optimizer.name")
    if found:
        raise FewstepError(
            f"{found[0]}: not with weights split over processes; remove it or set "
            "parallel.shard=none",
            code="unsupported",
        )


def leave_vae(backbone: Backbone) -> None:
    """Put a backbone's VAE on the host."""
    if isinstance(vae := getattr(backbone.pipe, "vae", None), nn.Module):
        vae.to(HOST)


@contextmanager
def encoders_alone(backbone: Backbone) -> Iterator[None]:
    """Context in which a backbone has no network: what is moved then leaves it where it is.

    Its configuration stays: an SD3 without T5 asks it how wide texts are.
    """
    parts = vars(backbone.pipe)  # an assignment would be noted in the pipeline's configuration
    net = parts[backbone.net_name]
    parts[backbone.net_name] = ConfigStub(net)
    try:
        yield
    finally:
        parts[backbone.net_name] = net


@contextmanager
def vae_here(backbone: Backbone) -> Iterator[None]:
    """Context in which the VAE is where the network is; one that was left goes back."""
    vae: Any = getattr(backbone.pipe, "vae", None)
    away = isinstance(vae, nn.Module) and next(vae.parameters()).device != backbone.device
    if away:
        vae.to(backbone.device)
    try:
        yield
    finally:
        if away:
            vae.to(HOST)
