"""A pipeline made of its configurations alone: networks on the meta device, no tokenizers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from fewstep.utils.errors import FewstepError

_EMPTY = (None, [None, None])


def meta_pipeline(folder: Path) -> Any:
    """The pipeline that a folder describes; it has shapes and settings, and cannot compute.

    Args:
        folder: With a model_index.json and each network's and the scheduler's configuration.

    Raises:
        FewstepError: A configuration is missing or does not fit the installed libraries.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    pipeline = getattr(diffusers, index["_class_name"])
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(pipeline.__init__).parameters.items():
        entry = index.get(name)
        if name == "self" or (name not in index and parameter.default is not parameter.empty):
            continue
        named = isinstance(entry, list) and len(entry) == 2
        arguments[name] = _part(folder / name, entry) if named else entry
    return pipeline(**arguments)


def _part(folder: Path, entry: list[Any]) -> Any:
    """One component; None for what is absent and for all that only prepares text or pictures."""
    library, name = entry
    if entry in _EMPTY:
        return None
    cls = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), name, None)
    if not inspect.isclass(cls):
        return None
    try:
        if issubclass(cls, diffusers.SchedulerMixin):
            scheduler: Any = cls
            return scheduler.from_pretrained(folder, local_files_only=True)
        if not issubclass(cls, nn.Module):
            return None
        return _network(cls, folder)
    except (OSError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FewstepError(
            f"{folder}: no usable configuration of a {name}: {first}", code="damaged"
        ) from error


def _network(cls: Any, folder: Path) -> nn.Module:
    """A network of random nothing, in the shapes of its configuration."""
    if issubclass(cls, transformers.PreTrainedModel):
        config = cls.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return cls(config)
    config = cls.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        return cls.from_config(config)
