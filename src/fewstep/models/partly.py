"""Networks without values, or with those of some tensors; the others come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from fewstep.models.libraries import third_party

_MODULES = 20_000  # published models have some thousand; a configuration may ask for a billion


def from_config(cls: Any, folder: Path) -> nn.Module:
    """A network of a configuration, on the meta device."""

    def build() -> Any:
        if issubclass(cls, transformers.PreTrainedModel):
            return cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        return cls.from_config(cls.load_config(folder, local_files_only=True))

    with checked_on_meta():
        network: nn.Module = third_party(folder, build)
    return network


@contextmanager
def checked_on_meta() -> Iterator[None]:
    """Context in which networks get no memory, and must not have too many modules."""
    count = 0

    def bounded(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > _MODULES:
            raise ValueError(f"more than {_MODULES} modules; are its numbers of layers right?")

    handle = register_module_module_registration_hook(bounded)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()


def load_partly(cls: Any, folder: Path, dtype: torch.dtype, files: Mapping[str, Path]) -> nn.Module:
    """A network as `from_pretrained` makes it; tensors that `files` lacks are on the meta device.

    Which tensors a file has was compared before, on the meta device.
    """

    def build() -> Any:
        before = cls._set_default_torch_dtype(dtype)
        try:
            with accelerate.init_empty_weights():
                return cls.from_config(cls.load_config(folder, local_files_only=True))
        finally:
            torch.set_default_dtype(before)

    network: Any = third_party(folder, build)
    for path in sorted({*files.values()}):
        with third_party(path, safe_open, path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in files if files[name] == path}
            third_party(
                path,
                load_model_dict_into_meta,
                network,
                tensors,
                dtype=dtype,
                keep_in_fp32_modules=cls._keep_in_fp32_modules,
            )
    network.register_to_config(_name_or_path=folder)
    return network.eval()
