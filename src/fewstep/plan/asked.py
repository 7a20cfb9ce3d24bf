"""What a network is asked, without values: latents, noise level and an encoded prompt."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from fewstep.backbones.base import Backbone
from fewstep.errors import FewstepError
from fewstep.records import Conditioning

_TEXT_WIDTHS = (
    "joint_attention_dim",
    "cross_attention_dim",
    "caption_channels",
    "cap_feat_dim",
    "text_dim",
)
_TIME_IDS = 6 * 256  # of SDXL: six numbers, embedded; the rest of that input is the pooled text


def text_length(backbone: Backbone) -> int:
    """Tokens of an encoded prompt, as the family encodes it."""
    told = getattr(backbone, "max_sequence_length", None)
    clip = clip_length(backbone)
    if backbone.name == "sd3":  # CLIP's tokens stand before T5's
        return clip + int(told or 0)
    if told is None and backbone.net_name != "unet":
        told = getattr(backbone.pipe, "tokenizer_max_length", None)
    return int(told or clip)


def clip_length(backbone: Backbone) -> int:
    """Tokens that the first tokenizer pads to: of its configuration; 77 where there is none."""
    try:
        file = backbone.source / "tokenizer" / "tokenizer_config.json"
        return int(json.loads(file.read_text(encoding="utf-8"))["model_max_length"])
    except (OSError, ValueError, KeyError):
        return 77


def stand_in(backbone: Backbone, batch: int, dtype: torch.dtype) -> Conditioning:
    """An encoded prompt on the meta device, in the shapes that the network's configuration tells.

    Raises:
        FewstepError: The configuration does not tell how wide texts are.
    """
    config: dict[str, Any] = dict(getattr(backbone.net, "config", {}))
    width = next((config[key] for key in _TEXT_WIDTHS if isinstance(config.get(key), int)), None)
    if width is None:
        raise FewstepError(f"{backbone.name}: its configuration does not tell how wide texts are")
    length = text_length(backbone)

    def blank(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(batch, *shape, dtype=kind, device="meta")

    tensors = {"prompt_embeds": blank(length, width), "mask": blank(length, kind=torch.bool)}
    if pooled := config.get("pooled_projection_dim"):
        tensors["pooled"] = blank(pooled)
    elif config.get("addition_embed_type") == "text_time":
        tensors["pooled"] = blank(config["projection_class_embeddings_input_dim"] - _TIME_IDS)
    if config.get("guidance_embeds"):
        tensors["guidance"] = blank(kind=torch.float32)
    return Conditioning(tensors)
