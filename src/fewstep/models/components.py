"""A pipeline's components: each is loaded whole, or refused with the name of what is wrong."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from fewstep.models.base import Backbone
from fewstep.models.configs import (
    INDEX,
    has_component,
    numbers_in,
    read_config,
    read_index,
    refuse_special_files,
)
from fewstep.models.libraries import third_party
from fewstep.models.partly import checked_on_meta, from_config, load_partly
from fewstep.utils.errors import FewstepError

_LOADABLE = (diffusers.utils.PushToHubMixin, transformers.utils.PushToHubMixin)
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+?))?(?:-\d+-of-\d+)?"
    r"(?:\.(?P<legacy>\w+))?\.safetensors"
)
_UNUSED = re.compile(r"(^|\.)(position_ids|inv_freq)$|^lm_head\.")
"""Tensors that older versions wrote beside the weights, and the head of a headless text encoder."""
_KINDS_OF_WEIGHTS = {".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".onnx", ".gguf", ".h5"}
_SIZES = (-(2**24), 2**24)  # of single numbers, which are sizes of tables
_BOUNDS = {"scaling_factor": (1e-4, 1e4), "_eps": (0, 0.1)}
_NO_SIZE = re.compile(r"theta|token|_id$|_ids$|max_position|length|timescale|period")


def load_pipeline(
    family: type[Backbone],
    folder: Path,
    *,
    dtype: torch.dtype | None,
    weights: bool = True,
    given: Mapping[str, Any] = MappingProxyType({}),
    without: Collection[str] = (),
    variant: str | None = None,
) -> Any:
    """The pipeline of a folder, component by component.

    diffusers and transformers fill tensors that a file lacks with random numbers, and only warn;
    here a component has exactly the tensors of its file.

    Args:
        family: The model family.
        folder: With a model_index.json.
        dtype: What to hold weights in. None: networks are on the meta device, with shapes and
            settings but no values, and there are no tokenizers.
        weights: Whether to compare names and shapes of weights; False: configurations will do.
        given: Components that are not loaded, but these instead; None leaves one out.
        without: Tensors of the family's network that need not be read, and stay on the meta device.
        variant: Variant of the weights files; None: the ordinary ones, or the only variant.

    Raises:
        FewstepError: Something is missing, damaged or unknown, or is not a finite number.
    """
    index = read_index(folder)
    pipeline: Any = family.pipeline_class
    if pipeline is diffusers.DiffusionPipeline:
        pipeline = getattr(diffusers, index["_class_name"])
    names, settings = _signature(folder, pipeline, index)
    required = _required(family, index)
    arguments: dict[str, Any] = {}
    for name in names:
        if name in given:
            arguments[name] = given[name]
        elif has_component(index, name):
            cls = class_of(folder, name, index[name], pipeline)
            own = without if name == family.net_name else ()
            arguments[name] = _component(
                folder / name, cls, dtype=dtype, weights=weights, without=own, variant=variant
            )
        elif name in required:
            raise FewstepError(
                f"{folder / INDEX}: no {name}, which the model needs; get the whole folder",
                code="missing-input",
            )
        else:
            arguments[name] = None
    pipe = third_party(folder, pipeline, **arguments, **settings)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def _signature(
    folder: Path, pipeline: Any, index: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Names of a pipeline's components, and the settings for it in the index."""
    names: list[str] = []
    settings: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(pipeline.__init__).parameters.items())[1:]:
        default = parameter.default
        optional = name in pipeline._optional_components or has_component(index, name)
        if default is parameter.empty or optional:
            names.append(name)
        elif name in index:
            settings[name] = index[name]
            if isinstance(default, bool) and not isinstance(settings[name], bool):
                raise FewstepError(
                    f"{folder / INDEX}: {name} must be true or false, not {settings[name]!r}",
                    code="damaged",
                )
    return names, settings


def has_weights(folder: Path) -> bool:
    """Whether a component of a folder has weights, of any kind; else it is configurations only."""
    return any(path.suffix in _KINDS_OF_WEIGHTS for path in folder.glob("*/*"))


def _required(family: type[Backbone], index: dict[str, Any]) -> set[str]:
    """Components that a pipeline of the family cannot do without."""
    encoders = {
        name
        for name in family.encoder_names
        if name not in family.optional_names or has_component(index, name)
    }
    tokenizers = {
        name
        for name in family.tokenizer_names
        if name.replace("tokenizer", "text_encoder") in encoders
    }
    return {family.net_name, "vae", "scheduler"} | encoders | tokenizers


def class_of(folder: Path, name: str, entry: Any, pipeline: Any) -> Any:
    """The class that the index names for a component; a folder's word imports nothing."""
    library, class_name = (str(word) for word in entry)
    # A plug-in's own library was imported with its family.
    module = sys.modules.get(library) or getattr(diffusers.pipelines, library, None)
    cls: Any = getattr(module, class_name, None)
    if missing := getattr(cls, "_backends", None):
        raise FewstepError(
            f"{folder / INDEX}: {class_name} needs {', '.join(missing)}; install it",
            code="missing-dependency",
        )
    expected = pipeline._get_signature_types().get(name, ())
    is_network = any(inspect.isclass(kind) and issubclass(kind, nn.Module) for kind in expected)
    fits = inspect.isclass(cls) and issubclass(cls, _LOADABLE)
    if not fits or (is_network and not issubclass(cls, nn.Module)):
        raise FewstepError(
            f"{folder / INDEX}: {library}.{class_name} is no class for a {name}; "
            "is the installed diffusers or transformers too old for the model?",
            code="unsupported",
        )
    return cls


def _component(
    folder: Path,
    cls: Any,
    *,
    dtype: torch.dtype | None,
    weights: bool,
    without: Collection[str],
    variant: str | None,
) -> Any:
    """One component; None for a tokenizer where none is wanted."""
    is_network, is_scheduler = (
        issubclass(cls, kind) for kind in (nn.Module, diffusers.SchedulerMixin)
    )
    if not (weights or is_network or is_scheduler):
        return None
    if not folder.is_dir():
        raise FewstepError(f"{folder}: no such folder; get the whole model", code="missing-file")
    refuse_special_files(folder)
    for file in sorted(folder.glob("*config.json")):
        _check_config(file)
    if is_network:
        if not weights:
            return from_config(cls, folder)
        return _network(cls, folder, dtype, without, variant)
    if issubclass(cls, transformers.PreTrainedTokenizerBase):
        _check_tokenizer(cls, folder)
    if dtype is None and not is_scheduler:
        return None
    return third_party(folder, cls.from_pretrained, folder, local_files_only=True)


def _check_config(file: Path) -> None:
    """Refuses a configuration that cannot be read, of quantised weights, or with absurd sizes."""
    config = read_config(file)
    if config.get("quantization_config"):
        raise FewstepError(
            f"{file}: quantised already (quantization_config); give the unquantised folder, "
            "fewstep quantises it itself (memory.base)",
            code="unsupported",
        )
    if file.name != "config.json":
        return
    for key, value in numbers_in(config):
        low, high = next((bounds for part, bounds in _BOUNDS.items() if part in key), _SIZES)
        if not low <= value <= high and not _NO_SIZE.search(key):
            raise FewstepError(f"{file}: {key} is absurd: {value:.3g}", code="out-of-range")
    for key, value in config.items():
        if "attn_implementation" in key and "/" in str(value):  # code from the hub
            raise FewstepError(f"{file}: {key} names foreign code; remove it", code="unsupported")


def _check_tokenizer(cls: Any, folder: Path) -> None:
    """Refuses a tokenizer that would be made without its vocabulary or its settings."""
    names = {path.name for path in folder.iterdir()}
    parts = dict(cls.vocab_files_names)
    whole = parts.pop("tokenizer_file", "tokenizer.json")
    if "tokenizer_config.json" not in names:
        raise FewstepError(f"{folder / 'tokenizer_config.json'}: no such file", code="missing-file")
    if whole not in names and not (parts and set(parts.values()) <= names):
        others = f" (or {' and '.join(sorted(parts.values()))})" if parts else ""
        raise FewstepError(
            f"{folder / whole}: no such file{others}; without it every prompt is the same",
            code="missing-file",
        )


# ------------------------------------------------------------------ networks


def _network(
    cls: Any,
    folder: Path,
    dtype: torch.dtype | None,
    without: Collection[str],
    wanted: str | None,
) -> nn.Module:
    """A network with the weights of its folder, or (dtype None) their shapes."""
    variant = _variant(folder, wanted)
    files = _files_of_tensors(folder, variant)
    if dtype is not None and without:
        part = load_partly(cls, folder, dtype, {n: f for n, f in files.items() if n not in without})
        if part.state_dict().keys() <= {*files}:  # else it has names of an earlier version
            _refuse_nonfinite(folder, part, files, dtype)
            return part
    how: dict[str, Any] = {"variant": variant} if variant else {}
    if variant != wanted and dtype is not None:
        logging.getLogger(__name__).warning("%s: read as its only variant, %s", folder, variant)
    if issubclass(cls, transformers.PreTrainedModel):
        how["ignore_mismatched_sizes"] = True  # only then are they named
    if dtype is None:
        how["device_map"] = "meta"
    else:
        how["dtype"] = dtype
    with checked_on_meta() if dtype is None else nullcontext():
        network, info = third_party(
            folder,
            cls.from_pretrained,
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **how,
        )
    _refuse_gaps(folder, cls, info, files)
    if dtype is not None:
        _refuse_nonfinite(folder, network, files, dtype)
    return network


def _variant(folder: Path, wanted: str | None) -> str | None:
    """The variant that a folder's weights are read in, such as fp16; None: the ordinary ones."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
    variants = sorted({match["variant"] or match["legacy"] or "" for match in found})
    if not variants:
        kinds = ", ".join(name for name in names if not name.endswith((".json", ".md", ".txt")))
        raise FewstepError(
            f"{folder}: no weights as safetensors ({kinds or 'none at all'}); get those, or convert"
            " the folder with diffusers: "
            "`DiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)`",
            code="missing-file",
        )
    if wanted is not None:
        if wanted not in variants:
            there = ", ".join(each or "the ordinary weights" for each in variants)
            raise FewstepError(
                f"{folder}: no variant {wanted} of the weights; there: {there} (model.variant)",
                code="missing-file",
            )
        return wanted
    if variants[0] == "":
        return None
    if len(variants) > 1:
        raise FewstepError(
            f"{folder}: several variants of the weights ({', '.join(variants)}); name one as "
            "model.variant",
            code="mismatch",
        )
    return variants[0]


def _files_of_tensors(folder: Path, variant: str | None) -> dict[str, Path]:
    """Name of each tensor in a folder's weights -> its file; reads headers only."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _WEIGHTS.fullmatch(path.name)
        if match and (match["variant"] or match["legacy"]) == variant and path.is_file():
            with third_party(path, safe_open, path, framework="pt") as opened:
                files |= dict.fromkeys(opened.keys(), path)
    return files


def _refuse_gaps(folder: Path, cls: Any, info: dict[str, Any], files: dict[str, Path]) -> None:
    """Refuses a network that did not take exactly the tensors of its files.

    Raises:
        FewstepError: Some are missing, too many or of another shape.
    """
    unexpected = [name for name in info["unexpected_keys"] if not _UNUSED.search(name)]
    faults = {
        "is missing": sorted(info["missing_keys"]),
        f"is not one of a {cls.__name__}": sorted(unexpected),
        "has another shape than config.json says": sorted(
            str(key if isinstance(key, str) else key[0]) for key in info["mismatched_keys"]
        ),
    }
    for fault, names in faults.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise FewstepError(
                f"{_file_of(names[0], folder, files)}: tensor {names[0]!r}{more} {fault}; get the "
                "model's folder again",
                code="damaged",
            )


def _file_of(name: str, folder: Path, files: dict[str, Path]) -> Path:
    """The file of a tensor, whose name may have changed on loading; of a missing one, a guess."""
    ends = (path for own, path in files.items() if own.endswith(name) or name.endswith(own))
    return next(ends, next(iter(files.values()), folder))


def _refuse_nonfinite(
    folder: Path, network: nn.Module, files: dict[str, Path], dtype: torch.dtype
) -> None:
    """Refuses weights with values that are infinite or not a number."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_meta and not _is_finite(tensor):
            hint = "get the model's folder again"
            if dtype == torch.float16:
                hint = "are they too large for float16? try --dtype bfloat16 (model.dtype)"
            raise FewstepError(
                f"{_file_of(name, folder, files)}: tensor {name!r} holds values that are no finite "
                f"numbers; {hint}",
                code="non-finite",
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: by their sum, which is a pass without a copy."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())
