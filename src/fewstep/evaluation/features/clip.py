"""Unit-length image embeddings of a CLIP model: a local folder, or a repo id, that users name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_model
from fewstep.utils.resources import resolve


class Clip:
    """A CLIP vision tower; its embeddings lie on the unit sphere, hence bounded."""

    def __init__(self, source: str) -> None:
        from transformers import CLIPVisionModelWithProjection

        path = resolve(source)
        where = str(path) if path.exists() else source
        try:
            net = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise FewstepError(
                f"feature space clip:{source}: cannot be loaded: {first}", code="missing-dependency"
            ) from error
        self.net = net.eval()
        self.key = f"clip-{digest_model(where) or source}"
        # OpenAI's preprocessing, which all CLIP checkpoints in transformers share.
        self.mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
        self.std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> [B, F]; resized whole, nothing is cropped off."""
        side = self.net.config.image_size
        pixels = interpolate(
            images.float().clamp(0, 1), (side, side), mode="bicubic", antialias=True
        ).clamp(0, 1)
        pixels = ((pixels - self.mean.to(pixels)) / self.std.to(pixels)).to(self.net.device)
        return normalize(self.net(pixel_values=pixels).image_embeds.float(), dim=-1)


def load(source: str) -> Clip:
    """The vision tower saved in `source`."""
    return Clip(source)
