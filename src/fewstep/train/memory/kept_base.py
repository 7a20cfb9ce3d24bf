"""Quantised bases kept on disk: a later start reads codes, and no weight of a quantised layer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import models
from fewstep.models.base import Backbone
from fewstep.train.memory.quantization import encoder, quantize
from fewstep.utils.disk import WriteFailed
from fewstep.utils.files import digest_files
from fewstep.utils.pace import Note, silent
from fewstep.utils.pretrained import Address, Pretrained
from fewstep.utils.tensors import cache_home, keep_tensors, kept_tensors

_FORMAT = 1  # of the parts of encoded weights


def load(
    path: Address,
    base: str | None,
    *,
    device: torch.device | str | None = None,
    keep: bool = True,
    note: Note = silent,
    **how: Any,
) -> Backbone:
    """`models.load`, and the network's base quantised, on the host, with codes kept for next time.

    Args:
        path: The model.
        base: See `quantize`; None leaves the network as it is.
        device: What computes codes that are not there yet.
        keep: Write them to the user's cache, `bases` in `utils.tensors.cache_home`.
        note: Told of codes that cannot be read or written, which then costs time only.
        how: Further arguments of `models.load`.

    Raises:
        FewstepError: As `models.load` and `quantize`.
    """
    if base is None:
        return models.load(path, **how)
    encoder(base)  # what is missing, before the wait
    model = Pretrained.of(path)
    if model.loras or model.variant:  # codes are kept by folder, and these are of other weights
        backbone = models.load(model, **how)
        quantize(backbone, base, device=device)
        return backbone
    kept = _Kept(base, note)
    backbone = models.load(path, without=kept.read, **how)
    parts = quantize(backbone, base, device=device, kept=kept.parts)
    if keep and kept.parts is None:
        kept.write(parts)
    return backbone


@dataclass(eq=False)
class _Kept:
    """The file of one network's codes; `parts` are those it holds, or None."""

    base: str
    note: Note
    parts: dict[str, Tensor] | None = None
    file: Path = Path()
    made: dict[str, Any] = field(default_factory=dict)

    def read(self, folder: Path, dtype: str) -> Collection[str]:
        """Names of the weights that it holds of a network's folder."""
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self.file = cache_home() / "bases" / f"{self.base}-{dtype}-{place}.safetensors"
        self.made = {"format": _FORMAT, "weights": _fingerprint(folder)}
        if not self.file.exists():
            return ()
        tensors, made = kept_tensors(self.file) or ({}, {})
        if made != self.made or not tensors:
            self.note(f"{self.file}: damaged, or of other weights; the base is encoded anew")
            return ()
        self.parts = tensors
        return {key.rpartition(".")[0] for key in tensors}

    def write(self, parts: dict[str, Tensor]) -> None:
        """Keep these parts; a disk that refuses costs only time at the next start."""
        try:
            keep_tensors(self.file, parts, **self.made)
        except WriteFailed as error:
            self.note(f"{error}; the base will be encoded again at the next start")


def _fingerprint(folder: Path) -> str:
    """Of a network's files: contents, as far as `digest_files` looks, and times of writing."""
    from torchao import __version__

    files = [each for each in folder.iterdir() if each.suffix in {".safetensors", ".json"}]
    times = sorted((each.name, each.stat().st_mtime_ns) for each in files)
    facts = digest_files(files), times, __version__
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
