"""Which parts of a pipeline are not loaded when only some of it is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewstep.models.base import Backbone


class ConfigStub:
    """Stands in for a denoiser that was not loaded: encoders ask what it takes, not what it knows.

    Attributes:
        config: The denoiser's configuration, defaults included.
    """

    def __init__(self, network: Any) -> None:
        """Takes over the configuration of the network or of its outline."""
        self.config = network.config


def skipped_components(
    family: type[Backbone], folder: Path, *, encoders: bool, network: bool
) -> dict[str, None]:
    """Arguments that tell `from_pretrained` not to load some parts.

    Args:
        family: Which names the parts.
        folder: The pipeline's.
        encoders: Whether text encoders and tokenizers are wanted.
        network: Whether the denoiser and the VAE are.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {name: any(entry) for name, entry in index.items() if isinstance(entry, list)}
    names: set[str] = set()
    if not encoders:
        names |= {*family.encoder_names, *family.tokenizer_names}
    # A pipeline that lacks one of its encoders may ask the denoiser how wide its texts would be.
    if not network and all(parts.get(name, True) for name in family.encoder_names):
        names |= {family.net_name, "vae"}
    return {name: None for name in sorted(names) if parts.get(name)}
