"""Deterministic algorithms: the same run gives the same bits again, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fewstep.utils.errors import FewstepError

_REFUSED = "does not have a deterministic implementation"
"""What PyTorch says of an operation that it refuses."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Context in which PyTorch uses deterministic algorithms alone, if wanted.

    Warning instead of refusing would not do: attention's backward kernels on CUDA repeat their
    bits in the strict mode only. The global settings that are changed are restored at the end.

    Raises:
        FewstepError: An operation has no deterministic algorithm on this device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS demands for it
    filling: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        filling.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # costs time, hides nothing here
    try:
        yield
    except RuntimeError as error:
        if _REFUSED not in str(error):
            raise
        operation = str(error).split(_REFUSED)[0].strip()
        raise FewstepError(
            f"train.deterministic: {operation} has no deterministic algorithm on this device; set "
            "train.deterministic to false (a resumed run is then equal up to rounding only)",
            code="unsupported",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = before[2]


@contextmanager
def forward_only() -> Iterator[None]:
    """Context for calls without a graph: attention may use cuDNN, whose forward pass repeats.

    PyTorch refuses it in the strict mode of `deterministic` for its backward pass alone.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    if not strict or torch.is_deterministic_algorithms_warn_only_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)
