"""Silence on what libraries say about themselves while they load, and no user can act on.

Imported before whatever loads diffusers, which loads torchao where that is installed.
"""

from __future__ import annotations

import logging

_SAID = {
    "torchao": "Failed to load ",  # kernels for hardware that is not there
    "torch.utils._pytree": " is an Enum subclass ",  # torchao's own use of torch
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor",
}
"""Logger -> part of the message that is dropped; all others are passed on."""


class _Without(logging.Filter):
    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self._part not in record.getMessage()


for _name, _part in _SAID.items():
    logging.getLogger(_name).addFilter(_Without(_part))
