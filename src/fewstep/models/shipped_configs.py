"""Configurations of published models, shipped: `plan` needs no network and no accepted licence."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from fewstep.utils import yaml

_INDEX = ("pipeline", "index")  # what model_index.json says beside the components


@functools.cache
def _tables() -> dict[str, Any]:
    text = (files("fewstep.models") / "shipped_configs.yaml").read_text("utf-8")
    tables: dict[str, Any] = yaml.load(text)
    return tables


def available() -> list[str]:
    """Ids on the hub of the published models whose configurations are shipped."""
    return list(_tables()["models"])


def pipeline_class(repo: str) -> str:
    """Name of a published model's pipeline class."""
    return str(_tables()["models"][repo]["pipeline"])


def components(repo: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and settings (those that differ from its defaults) of a model's parts, by component."""
    tables = _tables()
    model = {name: part for name, part in tables["models"][repo].items() if name not in _INDEX}
    named = tables["parts"]
    parts = {n: named[part] if isinstance(part, str) else part for n, part in model.items()}
    return {
        name: (part["class"], {key: part[key] for key in part if key != "class"})
        for name, part in parts.items()
    }


def write(repo: str, folder: Path) -> Path:
    """Writes the configurations of a published model as a diffusers folder without weights.

    Args:
        repo: One of `available`.
        folder: Where to; it is made.

    Returns:
        The folder. Sizes are those of the model; vocabularies and tokenizers are not there.
    """
    extra = _tables()["models"][repo].get("index", {})
    index: dict[str, Any] = {"_class_name": pipeline_class(repo), **extra}
    for name, (class_name, settings) in components(repo).items():
        library: Any = transformers if name.startswith("text_encoder") else diffusers
        index[name] = [library.__name__, class_name]
        kind = getattr(library, class_name)
        if library is transformers:
            kind.config_class(**settings).save_pretrained(folder / name)
            tokenizer = name.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "PreTrainedTokenizerFast"]
            continue
        with torch.device("cpu" if name == "scheduler" else "meta"):
            kind(**settings).save_config(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@functools.cache
def folder_of(repo: str) -> Path:
    """The configurations of a published model in a folder that lasts as long as this process."""
    logging.getLogger(__name__).warning(
        "%s: not fetched; sizes are those that fewstep ships for it", repo
    )
    temporary = _holder()
    return write(repo, Path(temporary.name) / repo.replace("/", "--"))


@functools.cache
def _holder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fewstep-configs-")
