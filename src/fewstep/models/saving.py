"""Writing a student as a diffusers folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_pipeline(source: Path, folder: Path, networks: dict[str, Any], scheduler: Any) -> None:
    """Writes a complete diffusers folder: the source's files, with new networks.

    Args:
        source: The teacher's folder.
        folder: Where to write.
        networks: Component name -> network, written in place of the source's.
        scheduler: The same for the scheduler; None: the source's.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_ignored(set(networks)))
    for name, network in networks.items():
        network.save_pretrained(folder / name, safe_serialization=True)
    if scheduler is not None:
        shutil.rmtree(folder / "scheduler", ignore_errors=True)
        scheduler.save_pretrained(folder / "scheduler")
        index = folder / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["scheduler"] = ["diffusers", type(scheduler).__name__]
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _ignored(components: set[str]) -> Callable[[str, list[str]], set[str]]:
    """A filter for copytree that leaves out components, hidden files, pictures and cards."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name.endswith((".png", ".md"))}
        return hidden | (components & set(names))

    return ignore
