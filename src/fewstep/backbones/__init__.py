"""Model families, one file each, found by the pipeline class that a diffusers folder names."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.backbones.base import Backbone
from fewstep.errors import FewstepError, did_you_mean
from fewstep.resources import resolve

__all__ = ["Available", "Backbone", "available", "load"]


@dataclass(frozen=True)
class Available:
    """One row of the table of models: what a family is called and what it understands."""

    name: str
    status: str
    reason: str
    pipelines: tuple[str, ...]
    prediction: str
    guidance: str


@cache
def _families() -> dict[str, type[Backbone]]:
    """Every Backbone subclass defined in a file of this package, by name."""
    found: dict[str, type[Backbone]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Backbone) and not inspect.isabstract(cls):
                found[cls.name] = cls
    return found


def available() -> list[Available]:
    """The families that can be distilled, sorted by name."""
    return [
        Available(name, "supported", cls.notes, cls.pipelines, cls.prediction, cls.guidance)
        for name, cls in sorted(_families().items())
    ]


def load(path_or_repo_id: str | Path, *, dtype: str = "float32", **options: Any) -> Backbone:
    """The backbone for a diffusers folder, or for a repo id on the Hugging Face Hub.

    Nothing is fetched unless the path does not exist and has the form of a repo id. Only
    safetensors are read, no remote code is run.

    Args:
        path_or_repo_id: Folder with a model_index.json, `package://...`, or `owner/name`.
        dtype: Name of the torch dtype that the weights are held in.
        options: Settings of the family, such as SD3's `max_sequence_length`.

    Raises:
        FewstepError: No such folder, not a diffusers pipeline, or a pipeline that is not supported.
    """
    import torch

    folder = _local_folder(path_or_repo_id)
    family = _family_of(folder)
    accepted = set(inspect.signature(family).parameters) - {"pipe", "source"}
    for name in options:
        if name not in accepted:
            raise FewstepError(
                f"{family.name} has no option {name!r}: {did_you_mean(name, accepted)}"
            )
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise FewstepError(f"unknown dtype {dtype!r}: {did_you_mean(dtype, _DTYPES)}")
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            **family.load_overrides(folder),
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FewstepError(f"{folder}: cannot be loaded: {first}") from error
    return family(pipe, folder, **options)


_DTYPES = ("float32", "bfloat16", "float16")


def _local_folder(path_or_repo_id: str | Path) -> Path:
    folder = resolve(path_or_repo_id)
    if folder.exists():
        return folder
    text = str(path_or_repo_id)
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")):
        raise FewstepError(f"{text}: no such folder; give a diffusers folder or owner/name")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(text, use_safetensors=True))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FewstepError(f"{text}: no such folder, and the hub refused: {first}") from error


def _family_of(folder: Path) -> type[Backbone]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise FewstepError(f"{folder}: not a diffusers pipeline folder (no model_index.json)")
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise FewstepError(f"{index}: not readable; it must name a _class_name") from error
    known = {pipeline: cls for cls in _families().values() for pipeline in cls.pipelines}
    if pipeline not in known:
        raise FewstepError(
            f"{folder}: {pipeline} is not supported; supported: {', '.join(sorted(known))}"
        )
    return known[pipeline]
