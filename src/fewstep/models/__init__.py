"""Model families, one file each, found by the pipeline class that a diffusers folder names."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from fewstep.utils import silence  # noqa: F401 - first, before diffusers

# isort: split
from fewstep.models import distilled, hub
from fewstep.models.base import Backbone
from fewstep.models.distilled import REFUSED, Refused
from fewstep.models.meta import meta_pipeline
from fewstep.models.published import Published
from fewstep.models.stubs import ConfigStub, skipped_components
from fewstep.utils.errors import FewstepError, did_you_mean

__all__ = [
    "REFUSED",
    "Available",
    "Backbone",
    "Published",
    "Refused",
    "available",
    "family_of",
    "load",
    "load_meta",
]


@dataclass(frozen=True)
class Available:
    """One row of the table of models: what a family is called and what it understands."""

    name: str
    status: str
    reason: str
    pipelines: tuple[str, ...]
    prediction: str
    guidance: str
    models: tuple[Published, ...] = ()


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
        Available(
            name, "supported", cls.notes, cls.pipelines, cls.prediction, cls.guidance, cls.models
        )
        for name, cls in sorted(_families().items())
    ]


def load(
    path_or_repo_id: str | Path,
    *,
    dtype: str = "float32",
    force: bool = False,
    teacher: bool = True,
    encoders: bool = True,
    network: bool = True,
    **options: Any,
) -> Backbone:
    """The backbone for a diffusers folder, or for a repo id on the Hugging Face Hub.

    Nothing is fetched unless the path does not exist and has the form of a repo id. Only
    safetensors are read, no remote code is run.

    Args:
        path_or_repo_id: Folder with a model_index.json, `package://...`, or `owner/name`.
        dtype: Name of the torch dtype that the weights are held in.
        force: Take a teacher that is distilled already, with a warning.
        teacher: It is to be distilled. A student, which is distilled, is loaded without.
        encoders: With text encoders and tokenizers; without, prompts cannot be encoded.
        network: With the denoiser and the VAE; without, it can do nothing but encode.
        options: Settings of the family, such as SD3's `max_sequence_length`.

    Raises:
        FewstepError: No such folder, not a diffusers pipeline, a pipeline that is not supported, or
            a teacher that is distilled already.
    """
    import torch

    family = _recognise(path_or_repo_id, options, force=force, teacher=teacher)
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise FewstepError(
            f"unknown dtype {dtype!r}: {did_you_mean(dtype, _DTYPES)}", code="unknown-name"
        )
    folder = hub.whole(path_or_repo_id)
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            **(
                family.load_overrides(folder, **options)
                | skipped_components(family, folder, encoders=encoders, network=network)
            ),
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FewstepError(f"{folder}: cannot be loaded: {first}", code="damaged") from error
    if getattr(pipe, family.net_name) is None:
        setattr(pipe, family.net_name, ConfigStub(getattr(meta_pipeline(folder), family.net_name)))
    return family(pipe, folder, **options)


def family_of(path_or_repo_id: str | Path) -> type[Backbone]:
    """The family that understands a pipeline; of a repo, only small files are fetched."""
    return _family_of(hub.configs(path_or_repo_id))


def load_meta(path_or_repo_id: str | Path, *, force: bool = False, **options: Any) -> Backbone:
    """The backbone without its weights: all networks on the meta device, no tokenizers.

    It tells sizes, shifts, blocks and targets, and cannot compute. Needs the configurations only;
    of a repo, only they are fetched. Arguments and errors are those of `load`.
    """
    family = _recognise(path_or_repo_id, options, force=force, teacher=True)
    folder = hub.configs(path_or_repo_id)
    return family(meta_pipeline(folder), folder, **options)


_DTYPES = ("float32", "bfloat16", "float16")


def _recognise(
    path_or_repo_id: str | Path, options: dict[str, Any], *, force: bool, teacher: bool
) -> type[Backbone]:
    """The family of a pipeline, and whether it can be loaded as asked; reads small files only."""
    folder = hub.configs(path_or_repo_id)
    family = _family_of(folder)
    if teacher and (why := distilled.reason(str(path_or_repo_id), folder)):
        if not force:
            raise FewstepError(
                f"{path_or_repo_id}: {why}, or force it: --force, model.force: true, force=True",
                code="distilled-teacher",
            )
        logging.getLogger(__name__).warning("%s: forced, although %s", path_or_repo_id, why)
    _check_options(family, options)
    return family


def _check_options(family: type[Backbone], options: dict[str, Any]) -> None:
    """Refuse options that the family's constructor does not take, by name or by type."""
    accepted = set(inspect.signature(family).parameters) - {"pipe", "source"}
    kinds = get_type_hints(family.__init__)
    for name, value in options.items():
        if name not in accepted:
            raise FewstepError(
                f"{family.name} has no option {name!r}: {did_you_mean(name, accepted)}",
                code="unknown-name",
            )
        try:
            TypeAdapter(kinds[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].lower()
            raise FewstepError(f"model.options.{name}: {wanted}, not {value!r}") from error


def _family_of(folder: Path) -> type[Backbone]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise FewstepError(
            f"{folder}: not a diffusers pipeline folder (no model_index.json)", code="missing-file"
        )
    try:
        pipeline = str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise FewstepError(
            f"{index}: not readable; it must name a _class_name", code="damaged"
        ) from error
    known = {pipeline: cls for cls in _families().values() for pipeline in cls.pipelines}
    if pipeline in known:
        return known[pipeline]
    hint = f"supported: {', '.join(sorted(known))}"
    if why := distilled.outside(pipeline):
        hint = f"it {why}; {hint}"
    elif why := distilled.reason(str(folder), folder):
        hint = why
    raise FewstepError(f"{folder}: {pipeline} is not supported; {hint}", code="unsupported")
