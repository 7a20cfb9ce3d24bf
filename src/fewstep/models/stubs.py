"""Loading a part of a pipeline: which components to skip, and what stands in for the denoiser."""

from __future__ import annotations

from typing import Any

from fewstep.models.base import Backbone


class ConfigStub:
    """Stands in for a denoiser that was not loaded; text encoding may read its configuration.

    Attributes:
        config: The denoiser's configuration, with all defaults.
    """

    def __init__(self, network: Any) -> None:
        """Takes the configuration of a network, which may be on the meta device."""
        self.config = network.config


def skipped_components(family: type[Backbone], *, encoders: bool, network: bool) -> dict[str, None]:
    """Components that are left out, for `load_pipeline`.

    Args:
        family: The model family, which names the components.
        encoders: Whether to load text encoders and tokenizers.
        network: Whether to load the denoiser and the VAE.
    """
    names: set[str] = set()
    if not encoders:
        names |= {*family.encoder_names, *family.tokenizer_names}
    if not network:
        names |= {family.net_name, "vae"}
    return {name: None for name in sorted(names)}
