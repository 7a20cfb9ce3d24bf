"""How many prompts text encoders take at a time, by the memory of their activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fewstep.models.base import Backbone

ENCODE_BYTES = 2 * 10**9
"""Bound on the activations of text encoders, beside their weights; bytes."""
ENCODE_BATCH = 64
"""Prompts at most that are encoded together."""


def encode_batch(backbone: Backbone, dtype: torch.dtype | None = None) -> int:
    """Prompts whose activations stay within `ENCODE_BYTES`, from 1 to `ENCODE_BATCH`.

    It depends on configurations alone, so that a run repeats on any device: batching changes
    rounding.

    Args:
        backbone: The model with its text encoders, which may be on the meta device.
        dtype: Their precision; None: that of their weights.
    """
    return max(1, min(ENCODE_BATCH, ENCODE_BYTES // prompt_bytes(backbone, dtype)))


def prompt_bytes(backbone: Backbone, dtype: torch.dtype | None = None) -> int:
    """Bound on the activations of one prompt in the text encoder that takes most; bytes."""
    parts = (getattr(backbone.pipe, name, None) for name in backbone.encoder_names)
    encoders = [part for part in parts if isinstance(part, nn.Module)]
    tokens = backbone.encoder_tokens
    return max((_of(each, tokens, dtype) for each in encoders), default=1)


def _of(encoder: Any, tokens: int, dtype: torch.dtype | None) -> int:
    """Bytes of one prompt: per token, all hidden states and a layer's work, then the attention.

    Attention is counted as a matrix that is kept in the encoder's precision and twice in float32,
    with its bias: so T5 computes it. Logits are counted where an encoder has a head for them.
    """
    config = encoder.config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "d_ff", None) or config.intermediate_size
    head = getattr(encoder, "lm_head", None)
    logits = 6 * head.out_features if isinstance(head, nn.Linear) else 0
    size = (dtype or encoder.dtype).itemsize
    a_token = size * (width * (config.num_hidden_layers + 8) + 5 * inner) + 16 * width + logits
    scores = config.num_attention_heads * tokens * (2 * size + 8)
    return int(tokens * (a_token + scores))
