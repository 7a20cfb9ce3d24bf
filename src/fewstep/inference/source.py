"""A pipeline that is loaded for drawing, part by part: text encoders come first, and go."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from fewstep.core.types import Conditioning
from fewstep.data.embeddings import Embeddings, key_of
from fewstep.data.rows import Rows
from fewstep.models.base import Backbone
from fewstep.train.memory import kept_base
from fewstep.train.memory.offload import HOST, offload_vae
from fewstep.utils.errors import FewstepError, unknown
from fewstep.utils.hardware import pick_device
from fewstep.utils.pretrained import Address
from fewstep.utils.resources import resolve

Offload: TypeAlias = Literal["model", "none"]
OFFLOADS: tuple[Offload, ...] = ("model", "none")
_MEMORY = 2e9  # bytes of embeddings that are kept in memory; the rest is in a temporary file


@dataclass(frozen=True)
class Source:
    """A pipeline on the disk, and how it is held.

    Attributes:
        address: Folder, `package://...`, repo id, single file, or one of these with LoRAs.
        dtype: Name of the torch dtype of the weights; `auto` as `models.load` takes it.
        device: Where to compute; `auto` takes an accelerator if there is one.
        base: Quantize the network's blocks to this, as `memory.base` does; None: not.
        offload: None: text encoders are there only while they encode, without the network; then
            network and VAE are on the device. "model": either of the two, the other waits in the
            computer's memory. "none": everything is loaded, and stays on the device.
        cache: A folder of embeddings that `fewstep encode` wrote; where it is not of this model,
            or lacks a prompt, text encoders are loaded.
        options: Settings of the model family.
    """

    address: Address
    dtype: str = "auto"
    device: str = "auto"
    base: str | None = None
    offload: Offload | None = None
    cache: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a word that is none."""
        if self.offload not in (None, *OFFLOADS):
            raise unknown("offload", str(self.offload), OFFLOADS)

    def load(
        self, prompts: Sequence[str] = (), *, batch: int = 1, spill: Path | None = None
    ) -> Backbone:
        """The pipeline, on its device, without text encoders unless `offload` is "none".

        Args:
            prompts: What will be drawn, encoded before the network is loaded. Others bring the text
                encoders back; the network then waits in the computer's memory.
            batch: How many are encoded at once; with 1 an embedding depends on its prompt alone.
            spill: A folder on the file system that takes the embeddings that are too many.
        """
        device = pick_device(self.device)
        whole = self.offload == "none"
        ahead = None if whole or not prompts else self._encoded(prompts, batch, spill)
        # Codes are made layer by layer, since the whole network may not fit on the device.
        backbone = self._part(base=self.base, device=device, encoders=whole)
        backbone.to(device)
        if self.offload == "model":
            offload_vae(backbone)
        if not whole:
            backbone.learn = partial(self._learn, backbone)
            if ahead is not None:
                backbone.known, null = ahead
                backbone.keep_null(null)
        return backbone

    def _part(
        self, *, base: str | None = None, device: torch.device | None = None, **parts: bool
    ) -> Backbone:
        # Whether it can be a teacher was decided when it became one.
        options = {"teacher": False, **self.options, **parts}
        return kept_base.load(
            self.address, base, device=device, keep=False, dtype=self.dtype, **options
        )

    def _learn(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        """Makes prompts those that a backbone knows."""
        with set_aside(backbone.net):
            backbone.known, null = self._encoded(prompts, 1, None)
        backbone.keep_null(null)

    @torch.no_grad()
    def _encoded(
        self, prompts: Sequence[str], batch: int, spill: Path | None
    ) -> tuple[Mapping[str, Conditioning], Conditioning]:
        """Embeddings of prompts, each once, and that of the empty prompt; on the host."""
        texts = list(dict.fromkeys(prompts))
        stored = self._stored()
        if stored is not None and stored.has_null:
            stored.verify(texts)
            if not stored.missing(texts):
                return _Known(texts, lambda text: stored.read([text])), stored.null()
        encoders = self._part(network=False).to(pick_device(self.device))
        try:
            rows = Rows(len(texts), memory=_MEMORY, folder=spill)
            for start in range(0, len(texts), batch):
                rows.append(encoders.encode(texts[start : start + batch]).to(HOST))
            numbers = {text: number for number, text in enumerate(texts)}
            return _Known(texts, lambda text: rows[numbers[text]]), encoders.null(1).to(HOST)
        finally:
            del encoders
            release()

    def _stored(self) -> Embeddings | None:
        """The embeddings on the disk, if they are there and of this model in this precision."""
        if self.cache is None or not (folder := resolve(self.cache)).is_dir():
            return None
        try:
            stored = Embeddings.open(folder)
            key = key_of(self.address, dtype=self.dtype, options=self.options)
            stored.refuse_other(key)
        except FewstepError:
            return None
        return stored


class _Known(Mapping[str, Conditioning]):
    """Embeddings by prompt, each read when it is asked for."""

    def __init__(self, texts: Sequence[str], read: Callable[[str], Conditioning]) -> None:
        self._texts, self._read = dict.fromkeys(texts), read

    def __getitem__(self, text: str) -> Conditioning:
        if text not in self._texts:
            raise KeyError(text)
        return self._read(text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


@contextmanager
def set_aside(network: nn.Module) -> Iterator[None]:
    """Context in which a network on an accelerator waits in the computer's memory."""
    device = next(network.parameters()).device
    if device == HOST:
        yield
        return
    network.to(HOST)
    release()
    try:
        yield
    finally:
        network.to(device)


def release() -> None:
    """Gives back the memory of what nobody refers to any more; networks refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
