"""A whole diffusers folder, with the student in its network's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.export.base import Format, Student
from fewstep.export.snippet import diffusers_usage


class Diffusers(Format):
    """Everything that `DiffusionPipeline.from_pretrained` needs; an adapter is merged."""

    name = "diffusers"

    def write(self, student: Student, folder: Path) -> None:
        """Writes the whole pipeline, see `Backbone.save`."""
        if student.adapter is not None:
            merge_adapters(student.net)
        student.net.to(getattr(torch, student.stored))
        student.backbone.save(folder, student.net, shift=student.shift, terminal=student.terminal)

    def usage(self, student: Student, address: str) -> str:
        """Python that draws with plain diffusers."""
        return diffusers_usage(student, address)


def merge_adapters(net: nn.Module) -> None:
    """Adds a network's active adapters to its weights, in place; no adapter layers are left."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        base: Any = layer.get_base_layer()
        delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
        base.weight.data = (base.weight.float() + delta).to(base.weight.dtype)  # rounded once
        net.set_submodule(name, base)
    if hasattr(net, "peft_config"):
        del net.peft_config
