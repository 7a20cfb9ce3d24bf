"""Model families, one file each, found by the pipeline class that a diffusers folder names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from fewstep.utils import silence  # noqa: F401 - first, before diffusers

# isort: split
from fewstep.models import distilled, hub, loras
from fewstep.models.base import Backbone
from fewstep.models.components import has_weights, load_pipeline
from fewstep.models.configs import read_index
from fewstep.models.distilled import REFUSED, Refused
from fewstep.models.published import Published
from fewstep.models.saving import stored_dtype, working_dtype
from fewstep.models.schedulers import check_scheduler
from fewstep.models.stubs import ConfigStub, skipped_components
from fewstep.models.trial import try_shapes
from fewstep.utils.errors import FewstepError, all_at_once, did_you_mean, shortened, unknown
from fewstep.utils.files import digest_model, digest_text
from fewstep.utils.pretrained import Address, Pretrained
from fewstep.utils.registry import Registry

__all__ = [
    "DTYPES",
    "FAMILIES",
    "REFUSED",
    "Available",
    "Backbone",
    "Published",
    "Refused",
    "available",
    "check",
    "check_options",
    "family_of",
    "fingerprint",
    "fingerprints",
    "load",
    "load_meta",
]

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the torch dtypes that weights may be held and written in."""
Option = Annotated[int, Field(ge=1, le=4096)]
"""What an option that is declared as an int may be: tokens, frames or steps."""


def _families_in(module: Any) -> Mapping[str, type[Backbone]]:
    """The concrete model families that a module defines or imports, by name."""
    classes = (cls for _, cls in inspect.getmembers(module, inspect.isclass))
    families = (c for c in classes if issubclass(c, Backbone) and not inspect.isabstract(c))
    return {family.name: family for family in families}


FAMILIES: Registry[type[Backbone]] = Registry(
    "model family", "fewstep.models", package="fewstep.models", members=_families_in
)
"""The model families: the files of this package, and entry points of other packages."""


@dataclass(frozen=True)
class Available:
    """A model family that can be distilled; attributes as those of `Backbone`."""

    name: str
    pipelines: tuple[str, ...]
    prediction: str
    guidance: str
    notes: str
    models: tuple[Published, ...] = ()
    status: str = "supported"


def available() -> list[Available]:
    """The model families that can be distilled, sorted by name."""
    return [
        Available(name, cls.pipelines, cls.prediction, cls.guidance, cls.notes, cls.models)
        for name, cls in FAMILIES.all().items()
    ]


def load(
    path_or_repo_id: Address,
    *,
    dtype: str = "float32",
    force: bool = False,
    teacher: bool = True,
    encoders: bool = True,
    network: bool | nn.Module = True,
    vae: bool = True,
    without: Callable[[Path, str], Collection[str]] | None = None,
    **options: Any,
) -> Backbone:
    """Loads a diffusers folder, a repo of the Hugging Face Hub, or a single-file checkpoint.

    Nothing is fetched unless the path does not exist and has the form of a repo id. Only
    safetensors are read, and no remote code is run.

    Args:
        path_or_repo_id: Folder with a model_index.json, `package://...`, `owner/name`, a
            `.safetensors` file, or one of these with what is taken of it and fused into it.
        dtype: Name of the torch dtype of the weights; `auto` is bfloat16 where the network's files
            are, else float32.
        force: Accept a teacher that is distilled already, with a warning.
        teacher: Whether it is to be distilled; a student, which is distilled, is loaded without.
        encoders: Whether to load text encoders and tokenizers, which encode prompts.
        network: Whether to load denoiser and VAE, without which it only encodes; or the denoiser.
        vae: Whether to load the VAE's weights; without them it cannot decode.
        without: Is given the denoiser's folder and dtype; names its tensors that need not be read,
            which stay on the meta device.
        options: Options of the family, such as SD3's `max_sequence_length`.

    Raises:
        FewstepError: There is no such folder or repo, it is not a diffusers pipeline, the pipeline
            is not supported, an option is wrong, or the teacher is distilled already.
    """
    model = Pretrained.of(path_or_repo_id)
    family = _checked_family(model, options, force=force, teacher=teacher)
    if dtype not in (*DTYPES, "auto"):
        raise unknown("dtype", dtype, DTYPES)
    folder = hub.download(model, family.pipeline_class)
    skipped = skipped_components(family, encoders=encoders, network=network is not False)
    given = family.load_overrides(folder, **options) | skipped
    how: dict[str, Any] = {"given": given, "variant": model.variant}
    meta = load_pipeline(family, folder, dtype=None, **how)  # what is wrong, before the wait
    given |= {} if isinstance(network, bool) else {family.net_name: network}
    given |= {} if vae else {"vae": meta.vae}  # its settings are those of latents
    if family.net_name not in skipped:
        _tried(family(meta, folder, **options), model)
    if dtype == "auto":
        dtype = working_dtype(stored_dtype(folder / family.net_name))
    unread = without(folder / family.net_name, dtype) if without else ()
    pipe = load_pipeline(family, folder, dtype=getattr(torch, dtype), without=unread, **how)
    if getattr(pipe, family.net_name) is None:
        meta = load_pipeline(family, folder, dtype=None, weights=False)
        setattr(pipe, family.net_name, ConfigStub(getattr(meta, family.net_name)))
    backbone = family(pipe, folder, **options)
    loras.fuse(backbone, model.loras)
    if not vae:
        backbone.pipe.vae = ConfigStub(meta.vae)  # nothing to move to a device
    return backbone


def check(path_or_repo_id: Address, *, force: bool = False, **options: Any) -> None:
    """Look whether a pipeline may be distilled with these options, by its configurations alone.

    Arguments and errors are those of `load`.
    """
    model = Pretrained.of(path_or_repo_id)
    _checked_family(model, options, force=force, teacher=not force)


def fingerprints(path_or_repo_id: Address) -> dict[str, str | None]:
    """What tells a model from others, by what it is made of: its files, and its LoRAs.

    A value is None where the files are not on this disk, or there are no LoRAs.
    """
    model = Pretrained.of(path_or_repo_id)
    return {"model": digest_model(hub.local(model)), "loras": loras.digest(model.loras)}


def fingerprint(path_or_repo_id: Address) -> str | None:
    """The same in one text; None where the files are not on this disk."""
    model, fused = fingerprints(path_or_repo_id).values()
    return digest_text(model, fused) if model and fused else model


def load_meta(
    path_or_repo_id: Address, *, force: bool = False, teacher: bool = True, **options: Any
) -> Backbone:
    """Loads a pipeline without weights and tokenizers: all networks are on the meta device.

    It knows sizes, shifts, blocks and LoRA targets, and cannot compute. Of a repo, only the
    configurations are fetched; those of published models are shipped for when that fails. Arguments
    and errors are those of `load`.
    """
    model = Pretrained.of(path_or_repo_id)
    folder = hub.download_configs(model, or_shipped=True)
    family = _checked_family(model, options, folder, force=force, teacher=teacher)
    given = family.load_overrides(folder, **options)
    weights = hub.is_single_file(model) is None and has_weights(folder)
    pipe = load_pipeline(
        family, folder, dtype=None, weights=weights, given=given, variant=model.variant
    )
    return _tried(family(pipe, folder, **options), model)


def _tried(backbone: Backbone, model: Pretrained) -> Backbone:
    """A backbone on the meta device, if it can be called and its LoRAs fit."""
    try_shapes(backbone)
    loras.fuse(backbone, model.loras)
    return backbone


def family_of(path_or_repo_id: Address) -> type[Backbone]:
    """The family that understands a pipeline; of a repo, only the configurations are fetched."""
    folder = hub.download_configs(path_or_repo_id)
    pipeline = str(read_index(folder)["_class_name"])
    families = FAMILIES.all()
    claims = [name for name, family in families.items() if pipeline in family.pipelines]
    if len(claims) > 1:
        raise FewstepError(
            f"{pipeline}: the families {' and '.join(claims)} both claim it; uninstall the package "
            "of one",
            code="mismatch",
        )
    if claims:
        return families[claims[0]]
    supported = sorted(name for family in families.values() for name in family.pipelines)
    hint = f"supported: {', '.join(supported)}"
    if why := distilled.outside(pipeline):
        hint = f"it {why}; {hint}"
    elif finding := distilled.recognise(str(folder), folder):
        hint = str(finding)
    raise FewstepError(f"{folder}: {pipeline} is not supported; {hint}", code="unsupported")


def _checked_family(
    model: Pretrained,
    options: dict[str, Any],
    folder: Path | None = None,
    *,
    force: bool,
    teacher: bool,
) -> type[Backbone]:
    """The family of a pipeline that may be loaded with these options; reads configurations only."""
    folder = folder or hub.download_configs(model)
    family = family_of(folder)
    for path, configs in ((model.path, folder), *((each.path, None) for each in model.loras)):
        why = distilled.recognise(path, configs) if teacher else None
        if why and not force:
            raise FewstepError(
                f"{path}: {why}, or force it: --force, model.force: true, force=True",
                code="distilled-teacher",
            )
        if why:
            logging.getLogger(__name__).warning("%s: forced, although %s", path, why)
    check_options(family, options)
    check_scheduler(folder, family.schedulers)
    return family


def check_options(family: type[Backbone], options: Mapping[str, Any]) -> None:
    """Refuses options that the family's constructor does not take, by name, type or size.

    Raises:
        FewstepError: Some of them are such.
    """
    accepted = set(inspect.signature(family).parameters) - {"pipe", "source"}
    types = get_type_hints(family.__init__, include_extras=True)
    with all_at_once() as part:
        for name, value in options.items():
            with part():
                if name not in accepted:
                    raise FewstepError(
                        f"model.options.{name}: {family.name} has no such option; "
                        f"{did_you_mean(name, accepted)}",
                        code="unknown-name",
                    )
                wanted = Option if types[name] is int else types[name]
                try:
                    TypeAdapter(wanted).validate_python(value, strict=True)
                except ValidationError as error:
                    problem = error.errors()[0]
                    raise FewstepError(
                        f"model.options.{name}: {problem['msg'].lower()}, not {shortened(value)}",
                        code="out-of-range" if "than" in problem["type"] else "invalid",
                    ) from error
