"""CLIPScore: how well pictures fit their prompts by a CLIP model (Hessel et al. 2021, 2104.08718).

100 max(cos(image, text), 0), averaged over the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.evaluation.features.clip import load_part, normalized_pixels
from fewstep.evaluation.metrics.base import Metric
from fewstep.utils.files import digest_model


class ClipScore(Metric):
    """Cosine between the embeddings of picture and prompt, in percent.

    Attributes:
        model: Folder or hub id of a CLIP model with its tokenizer.
    """

    name = "clip_score"
    licence = "that of the CLIP model named"

    model: str

    @property
    def key(self) -> str:
        """Changes with the weights as well, where they are on this disk."""
        return f"{super().key} {digest_model(self.model)}"

    @cached_property
    def _clip(self) -> tuple[Any, Any]:
        where = f"evaluate.metrics: clip_score: {self.model}"
        model = load_part("CLIPModel", self.model, where)
        return model, load_part("CLIPTokenizer", self.model, where)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Loads the model."""
        _ = self._clip

    @torch.no_grad()
    def measure(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        """The score of each picture, [B]. Prompts longer than the model reads are cut off."""
        net, tokenizer = self._clip
        length = net.config.text_config.max_position_embeddings
        tokens = tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        pixels = normalized_pixels(images, net.config.vision_config.image_size)
        out = net(pixel_values=pixels.to(net.device), **tokens.to(net.device))
        cosine = (normalize(out.image_embeds, dim=-1) * normalize(out.text_embeds, dim=-1)).sum(-1)
        return 100 * cosine.float().clamp_min(0).cpu()
