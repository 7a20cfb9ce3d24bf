"""A pipeline without weights: networks on the meta device, built from their configurations."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from fewstep.utils.errors import FewstepError


def meta_pipeline(folder: Path, pipeline: Any) -> Any:
    """The pipeline of a folder, with shapes and settings but no weights and no tokenizers.

    Args:
        folder: With a model_index.json and the configurations of the networks and the scheduler.
        pipeline: The pipeline class; `DiffusionPipeline`: the one that the folder names.

    Raises:
        FewstepError: A configuration is missing or does not fit the installed libraries.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if pipeline is diffusers.DiffusionPipeline:
        pipeline = getattr(diffusers, index["_class_name"])
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(pipeline.__init__).parameters.items():
        entry = index.get(name)
        if name == "self" or (name not in index and parameter.default is not parameter.empty):
            continue
        is_component = isinstance(entry, list) and len(entry) == 2
        arguments[name] = _component(folder / name, entry) if is_component else entry
    return pipeline(**arguments)


def _component(folder: Path, entry: list[Any]) -> Any:
    """One component; None where it is absent or is no network and no scheduler."""
    library, name = entry
    # A plug-in's own library was imported with its family; a folder's word imports nothing.
    cls = getattr(sys.modules.get(str(library)), str(name), None)
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
        reason = (str(error).strip().splitlines() or [""])[0]
        raise FewstepError(
            f"{folder}: no usable configuration of a {name}: {reason}", code="damaged"
        ) from error


def _network(cls: Any, folder: Path) -> nn.Module:
    """A network of a configuration, on the meta device."""
    if issubclass(cls, transformers.PreTrainedModel):
        config = cls.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return cls(config)
    config = cls.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        return cls.from_config(config)
