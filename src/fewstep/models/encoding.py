"""How a model family encodes prompts: with text encoders that are there, or that come and go."""

from __future__ import annotations

import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from fewstep.core.types import Conditioning
from fewstep.models.trial import try_encoders
from fewstep.utils.errors import FewstepError


class Encoding:
    """A pipeline's text encoders. Attributes beside these are described in `Backbone`.

    Attributes:
        known: Embeddings of prompts, batch 1 each, that no text encoder is asked for again.
        learn: Where the text encoders are not loaded: what makes some prompts, and the empty one,
            those that are known, with text encoders that are there only meanwhile.
    """

    pipe: Any
    source: Path
    encoder_names: ClassVar[tuple[str, ...]]
    tokenizer_names: ClassVar[tuple[str, ...]]
    max_sequence_length: int | None
    template_tokens: ClassVar[int]
    known: Mapping[str, Conditioning] = MappingProxyType({})
    learn: Callable[[Sequence[str]], None] | None = None
    _null: Conditioning | None = None
    _tried = False

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model computes."""

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Encodes prompts: tensors are batch-first, padded to one fixed length.

        Families implement this and others call `encode`, which passes a copy of the list.
        """

    def encode_null(self) -> Conditioning:
        """The empty prompt, encoded as the stock pipeline encodes a missing negative prompt."""
        return self.encode_prompts([""])

    def stock_encode(self, prompts: list[str], **arguments: Any) -> Any:
        """The result of the stock pipeline's `encode_prompt`, without classifier-free guidance.

        Args:
            prompts: The prompts.
            arguments: Further arguments. Of `device`, `max_sequence_length` and
                `do_classifier_free_guidance`, those that the pipeline knows are passed anyway.
        """
        known = inspect.signature(self.pipe.encode_prompt).parameters
        ours = {
            "device": self.device,
            "max_sequence_length": self.max_sequence_length,
            "do_classifier_free_guidance": False,
        }
        ours = {name: value for name, value in ours.items() if name in known}
        return self.pipe.encode_prompt(prompts, **(ours | arguments))

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encodes prompts that will be asked for, where text encoders come and go: all at once."""
        if self.learn is not None and any(each not in self.known for each in prompts):
            self.learn(prompts)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts as the denoiser takes them, padded to one fixed length.

        Raises:
            FewstepError: The text encoders were freed, or give values that are not finite.
        """
        self.prepare(prompts)
        if prompts and all(each in self.known for each in prompts):
            known = Conditioning.cat([self.known[each] for each in prompts])
            return known.counted().to(self.device)
        self._check_encoders()
        return self._finite(self.encode_prompts(list(prompts)))

    def _finite(self, cond: Conditioning) -> Conditioning:
        if wrong := cond.non_finite():
            raise FewstepError(
                f"{self.source}: the text encoders give values that are not finite ({wrong}): "
                "their weights are damaged, or model.dtype is too narrow; try bfloat16 or float32",
                code="non-finite",
            )
        return cond.counted()

    def _check_encoders(self) -> None:
        if getattr(self.pipe, self.encoder_names[0], None) is None:
            raise FewstepError(
                f"{self.source}: the text encoders were freed; load it again", code="missing-input"
            )
        self._tried = self._tried or try_encoders(self)

    @torch.no_grad()
    def null(self, batch: int) -> Conditioning:
        """The encoded empty prompt, repeated `batch` times; it is encoded only once."""
        if self._null is None and self.learn is not None:
            self.learn([])
        if self._null is None:
            self._check_encoders()
            self._null = self._finite(self.encode_null())
        return self._null.repeat_interleave(batch)

    def keep_null(self, cond: Conditioning) -> None:
        """Sets the encoded empty prompt, batch 1, so that no text encoder is needed for it."""
        self._null = cond.counted().to(self.device)

    def move_null(self, device: torch.device | str) -> None:
        """Moves the encoded empty prompt, if there is one."""
        if self._null is not None:
            self._null = self._null.to(device)

    @property
    def text_tokens(self) -> int:
        """Length of every encoded prompt in tokens."""
        return self.max_sequence_length or self.tokenizer_length()

    @property
    def encoder_tokens(self) -> int:
        """Most tokens that a text encoder reads of a prompt, with what a template adds to it."""
        return self.text_tokens + self.template_tokens

    def tokenizer_length(self) -> int:
        """Tokens that the first tokenizer pads to, from its configuration; 77 (CLIP) without."""
        file = self.source / (self.tokenizer_names or ("tokenizer",))[0] / "tokenizer_config.json"
        try:
            return int(json.loads(file.read_text(encoding="utf-8"))["model_max_length"])
        except (OSError, ValueError, KeyError):
            return 77

    def overlong(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt exceeds what every text encoder reads, so that its end is lost.

        A tokenizer reads up to its `model_max_length`, and no more than `most_tokens`.
        """
        lost = [bool(self.tokenizer_names)] * len(prompts)
        for name in self.tokenizer_names if prompts else ():
            tokenizer = getattr(self.pipe, name, None)
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one inside
            if tokenizer is not None:
                limit = min(tokenizer.model_max_length, self.most_tokens(name))
                tokens = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
                lost = [old and len(ids) > limit for old, ids in zip(lost, tokens, strict=True)]
        return lost

    def most_tokens(self, tokenizer: str) -> float:
        """Tokens at which `max_sequence_length` cuts what a tokenizer (its name) reads, or inf."""
        return self.max_sequence_length or math.inf

    def free_encoders(self) -> None:
        """Drops the text encoders from memory; the encoded empty prompt is kept."""
        self.null(1)
        for name in self.encoder_names:
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)
