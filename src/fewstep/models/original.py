"""Weights under the names of the checkpoint that a model's authors published: `original.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.utils import yaml
from fewstep.utils.errors import FewstepError

_TABLE = Path(__file__).with_name("original.yaml")


def check_layout(family: str) -> None:
    """Checks that the published layout of a family's weights is known.

    Raises:
        FewstepError: It is not.
    """
    if family not in _tables():
        raise FewstepError(
            f"{family}: no layout of a single file is known for this family; choose another format",
            code="unsupported",
        )


def original_layout(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under their published names.

    Args:
        family: Name of the model family.
        state: Weights by diffusers' names.

    Raises:
        FewstepError: The layout of the family is not known.
    """
    check_layout(family)
    table = _tables()[family]
    numbers = [int(part) for key in state for part in key.split(".")[1:2] if part.isdecimal()]
    last = str(max(numbers, default=0))
    swapped = tuple(f"{layer.replace('$', last)}." for layer in table.get("swapped", ()))
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state.items():
        name, number = _renamed(key, table)
        if key.startswith(swapped):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        parts.setdefault(name, {})[number] = tensor
    return {
        name: torch.cat([found[i] for i in sorted(found)]) if len(found) > 1 else found[0]
        for name, found in parts.items()
    }


def _renamed(key: str, table: Mapping[str, Any]) -> tuple[str, int]:
    """A weight's published name, and which part of it the weight is."""
    first, _, rest = key.partition(".")
    block = table.get("blocks", {}).get(first)
    name = f".{rest if block else key}."
    for old, new in (block["rules"] if block else table.get("names", {})).items():
        name = name.replace(old, new)
    stem, part, end = name.strip(".").partition("@")
    stem = f"{block['name']}.{stem}" if block else stem
    return (stem + end[1:], int(end[0])) if part else (stem, 0)


@cache
def _tables() -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(_TABLE.read_text(encoding="utf-8"))
    return found
