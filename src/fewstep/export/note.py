"""The note in an exported folder: how to load it, and which files were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.core.schedules import Terminal
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import damaged_files, read_text

NOTE = "fewstep.json"
"""File of an exported folder that says how to load it; plain diffusers does not need it."""

_Side = Annotated[int, Field(ge=1, le=2**16)]


class Note(BaseModel):
    """What an exported folder says of itself.

    Attributes:
        format: The export format.
        backbone: The model family.
        options: What the family's loader is given.
        size: Height and width in pixels that the student was distilled at.
        steps: Evaluations a picture.
        shift: Static shift of its grid; None is its model's own.
        terminal: Where that grid ends before 0; "model": as its model's own.
        base_sigmas: Its grid before the shift, without the final 0.
        guidance: Guidance scale to draw with; 1 is off.
        step: Iterations that it was trained for.
        base: Of an adapter: a `package://` address, a repo id, or the name of a local folder.
        base_fingerprint: `digest_model` of that base.
        files: Every other file that was written -> its SHA-256; None: an earlier version did.
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    format: str = "diffusers"
    backbone: str
    options: dict[str, Any] = Field(default_factory=dict)
    size: Annotated[list[_Side], Field(min_length=2, max_length=2)]
    steps: int = 4
    shift: Annotated[float, Field(gt=0)] | None = None
    terminal: Terminal = "model"
    base_sigmas: list[float] = Field(default_factory=list)
    guidance: float = 1.0
    step: Annotated[int, Field(ge=0)] = 0
    base: str | None = None
    base_fingerprint: str | None = None
    files: dict[str, str] | None = None

    def check(self, folder: Path) -> None:
        """Checks that what a student is loaded from is as it was written; the card may differ.

        Raises:
            FewstepError: A file is missing or has other content.
        """
        used = {name: digest for name, digest in (self.files or {}).items() if not _is_card(name)}
        if damaged := _changed(folder, used):
            raise FewstepError(
                f"{folder / damaged[0]}: missing or changed since it was exported; copy the whole "
                "folder again, or export again",
                code="damaged",
            )


def read_note(folder: Path) -> Note | None:
    """The note in a folder; None where there is none.

    Raises:
        FewstepError: It is damaged, or of a version whose grids are not known any more.
    """
    file = folder / NOTE
    if not file.exists():
        return None
    text = read_text(file)
    try:
        content = json.loads(text)
        note = Note.model_validate(content)
    except (ValueError, RecursionError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem else "not JSON"
        raise FewstepError(
            f"{file}: not what fewstep wrote ({why.lower()}); export again", code="damaged"
        ) from error
    if content.get("shift_scale", 1.0) != 1.0:
        raise FewstepError(
            f"{folder}: exported by an earlier version, on a grid that this one does not know; "
            "export the run again",
            code="version",
        )
    return note


def check_free(folder: Path) -> None:
    """Checks that an export may be written to a folder: only files of an earlier one are replaced.

    Raises:
        FewstepError: It holds something else, or a file that was changed since.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise FewstepError(f"{folder}: not a folder; choose another place", code="exists")
        return
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _plain(path)}
    if not found:
        return
    note = read_note(folder)
    listed = dict((note.files if note else None) or {})
    foreign = sorted(found - set(listed) - {NOTE})
    if note is None or foreign:
        what = f"holds {foreign[0]}, which no export there wrote" if foreign else "not an export"
        raise FewstepError(f"{folder}: {what}; move it, or choose another folder", code="exists")
    if changed := _changed(folder, {name: listed[name] for name in found & set(listed)}):
        raise FewstepError(
            f"{folder / changed[0]}: changed since it was exported, and would be replaced; move it,"
            " or choose another folder",
            code="exists",
        )


def _changed(folder: Path, sums: dict[str, str]) -> list[str]:
    """Names of files that are missing, no ordinary files, or have other content."""
    odd = [name for name in sums if ".." in name or not (folder / name).is_file()]
    return odd or damaged_files(folder, sums)


def _plain(path: Path) -> bool:
    """Whether a path is a folder itself, of which nothing can be lost."""
    return path.is_dir() and not path.is_symlink()


def _is_card(name: str) -> bool:
    return name == "README.md" or name.startswith("images/")
