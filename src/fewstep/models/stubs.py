"""Loading a part of a pipeline: which components to skip, and what stands in for the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.models.base import Backbone
from fewstep.models.configs import has_component, read_index


class ConfigStub:
    """Stands in for a denoiser that was not loaded; text encoding may read its configuration.

    Attributes:
        config: The denoiser's configuration, with all defaults.
    """

    def __init__(self, network: Any) -> None:
        """Takes the configuration of a network, which may be on the meta device."""
        self.config = network.config


def skipped_components(
    family: type[Backbone], folder: Path, *, encoders: bool, network: bool
) -> dict[str, None]:
    """Components that are left out, for `load_pipeline`.

    Args:
        family: The model family, which names the components.
        folder: The pipeline's folder.
        encoders: Whether to load text encoders and tokenizers.
        network: Whether to load the denoiser and the VAE.
    """
    index = read_index(folder)
    present = {name: has_component(index, name) for name in index}
    names: set[str] = set()
    if not encoders:
        names |= {*family.encoder_names, *family.tokenizer_names}
    # A pipeline that lacks one of its encoders may read the text's width from the denoiser.
    if not network and all(present.get(name, True) for name in family.encoder_names):
        names |= {family.net_name, "vae"}
    return {name: None for name in sorted(names)}
