"""Which pretrained model is meant: a place, and what of it is taken or added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that is fused into a model.

    Attributes:
        path: File, or folder with one.
        scale: What its change of the weights is multiplied by.
    """

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model. As a string: its path.

    Attributes:
        path: Diffusers folder, hub id, `package://...`, or a single-file checkpoint.
        variant: Variant of the weights files, such as `fp16`; None: the ordinary ones.
        components: Of a single file: folder or hub id that the parts it lacks are taken from.
        loras: LoRAs that are fused into the weights, in this order.
    """

    path: str
    variant: str | None = None
    components: str | None = None
    loras: tuple[LoraFile, ...] = ()

    def __str__(self) -> str:
        return self.path

    @staticmethod
    def of(address: Address) -> Pretrained:
        """The model at a path, a hub id, or as it is."""
        return address if isinstance(address, Pretrained) else Pretrained(str(address))


Address: TypeAlias = str | Path | Pretrained
"""Where a model is."""
