"""Accelerators by name, with memory and speed as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.utils.errors import unknown

SPARE = 0.08
"""Share of the memory that is left to the driver, the libraries and fragmentation."""


@dataclass(frozen=True)
class Gpu:
    """A kind of accelerator.

    Attributes:
        name: What the command line calls it.
        memory: In units of 1e9 bytes.
        tflops: Peak of dense matrix products in bfloat16, in 1e12 operations a second.
    """

    name: str
    memory: int
    tflops: float

    @property
    def room(self) -> int:
        """Bytes that a run may take."""
        return round(self.memory * 1e9 * (1 - SPARE))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200-180", 180, 2250),
        Gpu("h200-141", 141, 989),
        Gpu("h100-80", 80, 989),
        Gpu("a100-80", 80, 312),
        Gpu("a100-40", 40, 312),
        Gpu("l40s-48", 48, 362),
        Gpu("a6000-48", 48, 155),
        Gpu("rtx4090-24", 24, 165),
        Gpu("rtx3090-24", 24, 71),
        Gpu("a10-24", 24, 125),
        Gpu("l4-24", 24, 121),
        Gpu("rtx4080-16", 16, 97.5),
        Gpu("t4-16", 16, 65),  # in float16: it has no bfloat16
    )
}


def find_gpu(name: str) -> Gpu:
    """The accelerator of a name.

    Raises:
        FewstepError: There is no such name.
    """
    if name not in GPUS:
        raise unknown("--gpu", name, GPUS)
    return GPUS[name]
