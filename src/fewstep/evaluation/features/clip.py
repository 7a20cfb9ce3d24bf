"""Unit-length image embeddings of a CLIP model: a local folder, or a repo id, that users name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import digest_model
from fewstep.utils.resources import resolve

# OpenAI's preprocessing, which all CLIP checkpoints in transformers share.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)


def load_part(cls: str, source: str, where: str) -> Any:
    """A model (in evaluation mode) or a tokenizer of transformers, by the name of its class.

    Args:
        cls: Such as ``CLIPModel``.
        source: Folder or repo id.
        where: How the error's message begins.

    Raises:
        FewstepError: It cannot be loaded.
    """
    import transformers

    path = resolve(source)
    options = {} if cls.endswith("Tokenizer") else {"use_safetensors": True}
    place = str(path) if path.exists() else source
    try:
        part = getattr(transformers, cls).from_pretrained(place, **options)
    except Exception as error:  # whatever transformers makes of a user's files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewstepError(f"{where}: cannot be loaded: {first}", code="missing-file") from error
    return part.eval() if isinstance(part, torch.nn.Module) else part


def normalized_pixels(images: Tensor, side: int) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] as CLIP wants them, squeezed to [B, 3, side, side]."""
    images = images.float().clamp(0, 1)
    pixels = interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (pixels - _MEAN.to(pixels)) / _STD.to(pixels)


class Clip:
    """A CLIP vision tower; its embeddings lie on the unit sphere, hence bounded."""

    def __init__(self, source: str) -> None:
        where = f"feature space clip:{source}"
        self.net = load_part("CLIPVisionModelWithProjection", source, where)
        self.key = f"clip-{digest_model(resolve(source)) or source}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> [B, F]."""
        pixels = normalized_pixels(images, self.net.config.image_size).to(self.net.device)
        return normalize(self.net(pixel_values=pixels).image_embeds.float(), dim=-1).cpu()


load = Clip
