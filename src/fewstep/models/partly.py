"""Networks of which some tensors are not read, since they come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from safetensors import safe_open
from torch import nn

from fewstep.models.libraries import third_party


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
