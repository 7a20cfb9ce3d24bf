"""Writing a student as a diffusers folder."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fewstep.utils.files import read_json, write_json

_VARIANT = re.compile(r"^((?:model|diffusion_pytorch_model)(?:\.safetensors\.index)?)\.\w+(\.\w+)$")


def write_pipeline(source: Path, folder: Path, networks: dict[str, Any], scheduler: Any) -> None:
    """Writes a complete diffusers folder: the source's files, with new networks.

    Args:
        source: The teacher's folder.
        folder: Where to write.
        networks: Component name -> network, written in place of the source's.
        scheduler: The same for the scheduler.
    """
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]
    for name in sorted(set(parts) - {*networks, "scheduler"}):
        _copy(source / name, folder / name)
    for licence in source.glob("LICEN[CS]E*"):
        _copy(licence, folder / licence.name)
    for name, network in networks.items():
        limit = _largest_file(source / name, network.dtype)
        network.save_pretrained(folder / name, max_shard_size=limit)
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    write_json(folder / "model_index.json", index)
    for file in folder.glob("*/config.json"):  # where its author kept it says nothing to others
        content = read_json(file) or {}
        if content.pop("_name_or_path", None) is not None:
            write_json(file, content)


def stored_dtype(folder: Path) -> str:
    """Name of the torch dtype that a network's files hold most numbers in; else float32."""
    numbers: Counter[str] = Counter()
    for file in _weights(folder):
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(key)
                numbers[part.get_dtype()] += math.prod(part.get_shape())
    most = max(numbers, key=lambda name: numbers[name], default="F32")
    return {"BF16": "bfloat16", "F16": "float16"}.get(most, "float32")


def working_dtype(stored: str) -> str:
    """The dtype to compute in with weights stored in one: float16 saves room, and overflows."""
    return "bfloat16" if stored == "bfloat16" else "float32"


def _largest_file(folder: Path, dtype: torch.dtype) -> int | str:
    """Bytes of tensors in the largest file of a network's folder, in another precision.

    Files are filled in order, so that with this limit the same tensors share a file as before.
    """
    sizes = []
    for file in _weights(folder):
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        sizes.append(file.stat().st_size - 8 - header)
    stored = getattr(torch, stored_dtype(folder))
    return max(sizes) * dtype.itemsize // stored.itemsize if sizes else "10GB"


def _weights(folder: Path) -> list[Path]:
    """The files of a network's weights, without those of a variant beside the file itself."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16." not in file.name and ".bf16." not in file.name]
    return plain or files


def _copy(source: Path, target: Path) -> None:
    """Copies a file, or the files of a folder but hidden ones; modes are those of new files."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if not path.name.startswith("."):
                # A folder that has weights of a variant only, such as fp16, is written without it.
                name = _VARIANT.sub(r"\1\2", path.name)
                _copy(path, target / (path.name if (source / name).exists() else name))
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
