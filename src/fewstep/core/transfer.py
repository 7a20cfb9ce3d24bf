"""Copies from the host to an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from the host to a GPU through page-locked memory.

    Then nobody waits: neither for what the GPU has yet to do, nor for the copy. torch keeps the
    page-locked memory until the copy is done, and uses it again.
    """
    if tensor.is_cpu and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
