"""Fingerprints of files and folders, and files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_WHOLE = 64 * 2**20  # bytes up to which a file is hashed in full; beyond, its ends and its length
_ENDS = 2**20
_KINDS = {".safetensors", ".json", ".txt", ".model", ".py"}


def digest_text(*parts: str) -> str:
    """Short fingerprint of some texts, in order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """Fingerprint of files: their names (below `root`, if given) and contents.

    Of a file too large to read in a moment, the first and last megabyte and the length stand in.
    """
    total = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        name = path.relative_to(root).as_posix() if root else path.name
        total.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _WHOLE:
                total.update(stream.read())
            else:
                total.update(stream.read(_ENDS))
                stream.seek(-_ENDS, os.SEEK_END)
                total.update(stream.read())
    return total.hexdigest()[:16]


def digest_model(source: str | Path) -> str | None:
    """Fingerprint of a model's weights and configurations; None where they are not on this disk.

    Args:
        source: A folder, or a repo id, which is looked up in the local hub cache only.
    """
    folder = Path(source)
    if not folder.is_dir():
        cached = _cached_folder(str(source))
        if cached is None:
            return None
        folder = cached
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in _KINDS]
    return digest_files(files, folder) if files else None


def _cached_folder(repo: str) -> Path | None:
    """Snapshot of a repo id in the local hub cache; never asks the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(repo, name) for name in ("model_index.json", "config.json")]
    except HFValidationError:
        return None
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no such file or it is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
