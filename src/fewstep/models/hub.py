"""Finding a model's files: in a local folder, or by repo id on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.models import shipped_configs
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

_CONFIGS = ("model_index.json", "*/config.json", "scheduler/*.json", "fewstep.json", "README.md")
"""Everything about a pipeline but its weights and vocabularies; some kilobytes."""


def download_configs(path_or_repo_id: str | Path, *, or_shipped: bool = False) -> Path:
    """The folder of a pipeline with at least its configurations; of a repo, only these are fetched.

    Args:
        path_or_repo_id: A folder, or `owner/name`.
        or_shipped: Of a published model that the hub does not give (no network, or its licence is
            not accepted yet), take the configurations that are shipped.

    Raises:
        FewstepError: There is neither such a folder nor such a repo.
    """

    def fetch(repo: str) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(repo, allow_patterns=list(_CONFIGS))

    try:
        return _find(path_or_repo_id, fetch)
    except FewstepError:
        if or_shipped and str(path_or_repo_id) in shipped_configs.available():
            return shipped_configs.folder_of(str(path_or_repo_id))
        raise


def download(path_or_repo_id: str | Path, pipeline: Any) -> Path:
    """The folder of a complete pipeline; a repo is fetched, safetensors only.

    Args:
        path_or_repo_id: A folder, or `owner/name`.
        pipeline: The pipeline class, which says what files it needs.

    Raises:
        FewstepError: There is neither such a folder nor such a repo.
    """

    def fetch(repo: str) -> str:
        return str(pipeline.download(repo, use_safetensors=True))

    return _find(path_or_repo_id, fetch)


def _find(path_or_repo_id: str | Path, fetch: Callable[[str], str]) -> Path:
    folder = resolve(path_or_repo_id)
    if folder.exists():
        return folder
    text = str(path_or_repo_id)
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
