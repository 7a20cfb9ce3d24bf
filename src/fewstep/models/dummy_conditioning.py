"""What a network is asked, without values: latents, noise level and an encoded prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.types import Conditioning
from fewstep.utils.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.models.base import Backbone

_TEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "cap_feat_dim",
    "text_dim",
    "cross_attention_dim",  # last: in some families that of what texts are projected to
)


def dummy_conditioning(backbone: Backbone, batch: int, dtype: torch.dtype) -> Conditioning:
    """An encoded prompt on the meta device, in the shapes that the network's configuration tells.

    Raises:
        FewstepError: The configuration does not tell how wide texts are.
    """
    config: dict[str, Any] = dict(getattr(backbone.net, "config", {}))
    width = next((config[key] for key in _TEXT_WIDTHS if isinstance(config.get(key), int)), None)
    if width is None:
        raise FewstepError(
            f"{backbone.name}: its configuration does not tell how wide texts are",
            code="unsupported",
        )
    length = backbone.text_tokens

    def blank(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(batch, *shape, dtype=kind, device="meta")

    tensors = {"prompt_embeds": blank(length, width), "mask": blank(length, kind=torch.bool)}
    if pooled := config.get("pooled_projection_dim"):
        tensors["pooled"] = blank(pooled)
    elif config.get("addition_embed_type") == "text_time":
        times = 6 * config["addition_time_embed_dim"]  # of SDXL: six numbers, embedded
        tensors["pooled"] = blank(config["projection_class_embeddings_input_dim"] - times)
    if config.get("guidance_embeds"):
        tensors["guidance"] = blank(kind=torch.float32)
    return Conditioning(tensors, torch.full((batch,), length))
