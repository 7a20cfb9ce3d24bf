"""What ``fewstep doctor`` looks at: a check, and checks of weight files.

Installed packages may add more (``fewstep.checks``): functions without arguments that yield checks
and do not raise. ``fewstep doctor --demo`` runs those of the name ``demo``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep.utils.errors import FewstepError


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        status: ``ok``, ``warn`` (works, but mind it) or ``fail`` (something will not work).
        found: What was found.
        fix: What to do about it; empty when all is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def check_room(name: str, free: float, needed: float, fix: str) -> Check:
    """Whether a resource has as many units of 1e9 bytes free as are needed; warns where not."""
    found = f"{free / 1e9:.1f} GB free"
    return Check(name, "ok", found) if free >= needed * 1e9 else Check(name, "warn", found, fix)


def check_folder(folder: Path) -> tuple[int, int]:
    """Number and bytes of the weight files of a diffusers folder, after opening every one.

    Raises:
        FewstepError: A component is missing, or a file is truncated or not what its name says.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise FewstepError(f"{folder}: no model_index.json", code="missing-file")
    listed = json.loads(index.read_text(encoding="utf-8"))
    parts = [name for name, value in listed.items() if isinstance(value, list) and value[0]]
    for name in parts:
        if not (folder / name).is_dir():
            raise FewstepError(
                f"{folder / name}: missing, though model_index.json names it", code="missing-file"
            )
    for file in folder.rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FewstepError(f"{file}: not valid JSON: {error}", code="damaged") from error
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise FewstepError(f"{folder}: no .safetensors files", code="missing-file")
    return len(weights), sum(map(check_weights, weights))


def check_weights(file: Path) -> int:
    """Bytes of a safetensors file, after opening it.

    Raises:
        FewstepError: It is missing, truncated, or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except (FileNotFoundError, SafetensorError) as error:
        raise FewstepError(
            f"{file}: missing, truncated or not safetensors: {error}", code="damaged"
        ) from error
    return file.stat().st_size
