"""Accelerators by name, with memory and speed as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from fewstep.utils import yaml
from fewstep.utils.errors import unknown
from fewstep.utils.hardware import SPARE


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


_FILE = files("fewstep.planning") / "gpus.yaml"
GPUS = {name: Gpu(name, **row) for name, row in yaml.load(_FILE.read_text("utf-8")).items()}


def find_gpu(name: str) -> Gpu:
    """The accelerator of a name.

    Raises:
        FewstepError: There is no such name.
    """
    if name not in GPUS:
        raise unknown("--gpu", name, GPUS)
    return GPUS[name]
