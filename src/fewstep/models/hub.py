"""Where a model's files are: a local folder, or what the Hugging Face Hub has under a repo id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

_SMALL = ("model_index.json", "*/config.json", "scheduler/*.json", "fewstep.json", "README.md")
"""What tells of a pipeline all but its weights and vocabularies; some kilobytes."""


def configs(path_or_repo_id: str | Path) -> Path:
    """Folder with at least the small files of a pipeline; of a repo, only they are fetched.

    Raises:
        FewstepError: No such folder, and no such repo either.
    """

    def fetch(repo: str) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(repo, allow_patterns=list(_SMALL))

    return _find(path_or_repo_id, fetch)


def whole(path_or_repo_id: str | Path) -> Path:
    """Folder with everything that a pipeline needs; a repo is fetched, safetensors only.

    Raises:
        FewstepError: No such folder, and no such repo either.
    """

    def fetch(repo: str) -> str:
        from diffusers import DiffusionPipeline

        return str(DiffusionPipeline.download(repo, use_safetensors=True))

    return _find(path_or_repo_id, fetch)


def _find(path_or_repo_id: str | Path, fetch: Any) -> Path:
    folder = resolve(path_or_repo_id)
    if folder.exists():
        return folder
    text = str(path_or_repo_id)
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")):
        raise FewstepError(
            f"{text}: no such folder; give a diffusers folder or owner/name", code="missing-file"
        )
    try:
        return Path(fetch(text))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise FewstepError(
            f"{text}: no such folder, and the hub refused: {first}", code="missing-file"
        ) from error
