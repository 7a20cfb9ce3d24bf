"""What stands in for text encoders where embeddings are on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fewstep.core.types import Conditioning
from fewstep.data.embeddings import Embeddings
from fewstep.models.base import Backbone


class StoredEncoder:
    """A `prompts.Encoder` that reads embeddings from a folder and needs no text encoders."""

    def __init__(self, embeddings: Embeddings, backbone: Backbone) -> None:
        """Hands the encoded empty prompt to the backbone, which cannot encode it."""
        self._embeddings = embeddings
        self._backbone = backbone
        self._reader = ThreadPoolExecutor(1, "embeddings")
        self._coming: dict[tuple[str, ...], Future[Conditioning]] = {}
        backbone.keep_null(embeddings.null())

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of N prompts, batch N, on the model's device."""
        coming = self._coming.pop(tuple(prompts), None)
        cond = self._embeddings.read(prompts) if coming is None else coming.result()
        return cond.to(self._backbone.device)

    def prefetch(self, batches: Sequence[Sequence[str]]) -> None:
        """Reads what `encode` will be asked for next, in another thread."""
        read = self._embeddings.read
        self._coming = {tuple(each): self._reader.submit(read, each) for each in batches}

    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, `batch` times."""
        return self._backbone.null(batch)

    def overlong(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""
        return self._embeddings.overlong(prompts)
