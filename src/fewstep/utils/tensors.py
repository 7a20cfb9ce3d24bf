"""Tensors kept in a file as a cache: read back as they were written, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.utils.files import regular_file, replacing

_MADE, _SUM = "made", "sha256"


def cache_home() -> Path:
    """The user's folder for what can be made again: `FEWSTEP_CACHE`, or `~/.cache/fewstep`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("FEWSTEP_CACHE") or os.path.join(caches, "fewstep"))


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], **made: Any) -> None:
    """Writes tensors to a safetensors file, with a sum of their content.

    Args:
        path: The file.
        tensors: Name -> tensor on the CPU.
        made: Kept with them, as JSON.

    Raises:
        WriteFailed: The disk refuses.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {_MADE: json.dumps({**made, _SUM: _sum(whole)})}
    with replacing(path) as temporary:
        save_file(whole, temporary, metadata=metadata)


def kept_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Inverse of `keep_tensors`: what was kept and how it was made.

    None where there is no such file, or it is damaged: it has to be made again. Files of earlier
    versions have no sum, and are taken as they are.
    """
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            made: dict[str, Any] = json.loads((file.metadata() or {}).get(_MADE, "{}"))
        sound = made.pop(_SUM, None) in (None, _sum(tensors))
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return (tensors, made) if sound else None


def _sum(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        # A single number may have any stride, and is contiguous.
        row = tensor.contiguous().as_strided((tensor.numel(),), (1,))
        total.update(row.view(torch.uint8).numpy().data)
    return total.hexdigest()
