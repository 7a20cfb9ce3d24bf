"""The small JSON files of a diffusers folder, read strictly; and what is no such folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_text

INDEX = "model_index.json"
_LARGEST = 2**24  # bytes; published configurations are some kilobytes
_SINGLE = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft"}
_LORA = {"pytorch_lora_weights.safetensors", "adapter_config.json"}
_COMFY = {"checkpoints", "clip", "diffusion_models", "loras", "unet", "vae", "text_encoders"}


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a diffusers folder.

    Raises:
        FewstepError: It is not a diffusers folder, and what it is instead; or the file is damaged.
    """
    try:
        there = (folder / INDEX).exists()
        instead = None if there else _instead(folder)
    except OSError as error:
        raise FewstepError(f"{folder}: not readable: {error.strerror}", code="no-access") from error
    if not there:
        raise FewstepError(
            f"{folder}: not a diffusers pipeline folder: {instead or f'there is no {INDEX} in it'}",
            code="unsupported" if instead else "missing-file",
        )
    index = read_config(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise FewstepError(f"{folder / INDEX}: it must name a _class_name", code="damaged")
    return index


def has_component(index: Mapping[str, Any], name: str) -> bool:
    """Whether a model_index.json names a library and a class for a component."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and None not in entry


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object in which every key stands once and no number is NaN.

    Raises:
        FewstepError: There is no such file, or it holds something else.
    """

    def constant(word: str) -> float:
        if word == "NaN":
            raise ValueError("NaN is not a number")
        return float(word)  # infinite, as solvers' clips may be

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key {key!r} stands there twice")
        return dict(pairs)

    text = read_text(file, at_most=_LARGEST)
    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{file}: not readable: {error}", code="damaged") from error
    return content


def refuse_special_files(folder: Path) -> None:
    """Refuses a folder in which a name leads nowhere, or to a pipe or a device.

    Raises:
        FewstepError: There is one, or the folder cannot be listed.
    """
    try:
        for path in sorted(folder.iterdir()):
            if not (path.is_file() or path.is_dir()):
                raise FewstepError(
                    f"{path}: neither a file nor a folder; remove it, or copy the model again",
                    code="damaged",
                )
    except OSError as error:
        raise FewstepError(f"{folder}: {error.strerror}", code="no-access") from error


def numbers_in(content: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a JSON object, with the innermost key that it stands under."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from numbers_in(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from numbers_in(value, key)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield key, content


def _instead(path: Path) -> str | None:
    """What a path without a model_index.json is instead, and the way out; None: nobody knows."""
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    endings = {Path(name).suffix for name in names} if names else {path.suffix}
    file = (
        "give the checkpoint's own .safetensors file, and as model.components a diffusers folder "
        "with what it lacks"
    )
    found = {
        f"a file of one: give {path.parent}": path.name == INDEX,
        f"one component: give {path.parent}": bool(names) and (path.parent / INDEX).is_file(),
        "a run of fewstep: export it, and give the export": "config.yaml" in names,
        "a LoRA: give the model it belongs to": not names.isdisjoint(_LORA),
        "GGUF, quantised weights of one network: give the model's unquantised diffusers folder": (
            ".gguf" in endings
        ),
        f"a ComfyUI folder: {file}": (len(_COMFY & names) > 1 or (bool(names) and names <= _COMFY)),
        "a pickled or unknown file, which is not read: give the model as .safetensors, or as a "
        "diffusers folder": path.is_file(),
        f"a folder of single files: {file}": not endings.isdisjoint(_SINGLE),
    }
    return next((words for words, is_so in found.items() if is_so), None)
