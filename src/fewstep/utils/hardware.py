"""What a figure was measured on."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.utils.errors import FewstepError

if TYPE_CHECKING:
    import torch

SPARE = 0.08
"""Share of a GPU's memory that is left to the driver, the libraries and fragmentation."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory, accelerator and the versions that matter, ready for JSON."""
    import psutil
    import torch

    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def pick_device(name: str, where: str = "--device") -> torch.device:
    """The device of a name; ``auto`` takes an accelerator if there is one, else the processor.

    Args:
        name: Such as ``auto``, ``cpu`` or ``cuda:1``.
        where: Who asked, for the error message.

    Raises:
        FewstepError: This machine has no such device.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        made = torch.empty(0, device=name)
        made.cpu()  # which devices that hold no values refuse
        return made.device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or "not a device").splitlines()[0]
        raise FewstepError(
            f"{where}: {name!r} cannot be used here: {reason}", code="no-access"
        ) from error


def room(device: torch.device) -> float:
    """Bytes that a run may take of a GPU; infinite for a processor, whose memory is shared."""
    import torch

    if device.type != "cuda":
        return math.inf
    return torch.cuda.get_device_properties(device).total_memory * (1 - SPARE)


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on, not all that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in units of 1e9 bytes."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Context in which numbers below 1e-38, of which young moments are full, count as zero.

    CPUs are many times slower with them.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
