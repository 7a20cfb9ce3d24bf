"""Finding a model's files: in a local folder, or by repo id on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.models import shipped_configs, single_file
from fewstep.utils.errors import FewstepError
from fewstep.utils.pretrained import Address, Pretrained
from fewstep.utils.resources import resolve

_CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json", "fewstep.json", "README.md")
"""Everything about a pipeline but its weights and vocabularies; some kilobytes."""
_OTHER_KINDS = ["*.bin", "*.msgpack", "*.onnx*", "*.h5", "*.fp16.*", "*.bf16.*"]


def download_configs(path_or_repo_id: Address, *, or_shipped: bool = False) -> Path:
    """The folder of a pipeline with at least its configurations; of a repo, only these are fetched.

    Args:
        path_or_repo_id: A folder, a single file, or `owner/name`.
        or_shipped: Of a published model that the hub does not give (no network, or its licence is
            not accepted yet), take the configurations that are shipped.

    Raises:
        FewstepError: There is neither such a folder nor such a repo.
    """

    def fetch(repo: str) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(repo, allow_patterns=list(_CONFIGS))

    model = Pretrained.of(path_or_repo_id)
    if file := is_single_file(model):
        parts = download_configs(model.components) if model.components else None
        return single_file.configs_of(file, parts)
    try:
        return _find(model.path, fetch)
    except FewstepError:
        if or_shipped and model.path in shipped_configs.available():
            return shipped_configs.folder_of(model.path)
        raise


def is_single_file(model: Pretrained) -> Path | None:
    """The checkpoint that a model is, where it is one file; None: it is something else."""
    if model.path.startswith("package://"):
        return None
    file = resolve(model.path)
    return file if file.suffix == ".safetensors" and file.is_file() else None


def local(model: Pretrained) -> Path | str:
    """The folder of a model without asking the network; its address where that is a repo."""
    if is_single_file(model) and model.components:
        return download(model, None)
    folder = resolve(model.path)
    return folder if folder.exists() else model.path


def download(path_or_repo_id: Address, pipeline: Any) -> Path:
    """The folder of a complete pipeline; a repo is fetched, safetensors only.

    A single file is converted once, into a folder of the user's cache.

    Args:
        path_or_repo_id: A folder, a single file, or `owner/name`.
        pipeline: The pipeline class, which says what files it needs.

    Raises:
        FewstepError: There is neither such a folder nor such a repo.
    """
    model = Pretrained.of(path_or_repo_id)

    def fetch(repo: str) -> str:
        return str(pipeline.download(repo, use_safetensors=True, variant=model.variant))

    if file := is_single_file(model):
        if model.components is None:
            raise single_file.lacking(file, ["tokenizers"])
        wanted = single_file.parts_outside(file, download_configs(model.components))

        def fetch_parts(repo: str) -> str:
            from huggingface_hub import snapshot_download

            patterns = [*_CONFIGS, *(f"{name}/*" for name in wanted)]
            return snapshot_download(repo, allow_patterns=patterns, ignore_patterns=_OTHER_KINDS)

        return single_file.converted(file, _find(model.components, fetch_parts))
    return _find(model.path, fetch)


def _find(text: str, fetch: Callable[[str], str]) -> Path:
    folder = resolve(text)
    if folder.exists():
        return folder
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")):
        raise FewstepError(
            f"{text}: no such folder; give a diffusers folder or owner/name; "
            "of a run whose model has moved, --model PATH",
            code="missing-file",
        )
    try:
        return Path(fetch(text))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FewstepError(
            f"{text}: no such folder, and the hub refused: {reason}", code="missing-file"
        ) from error
