"""Writing an export: the format's files, a note on how to load them, and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.export.base import NOTE, STEPS, Format, Student
from fewstep.export.card import write_card
from fewstep.utils.errors import FewstepError
from fewstep.utils.files import replacing, write_json
from fewstep.utils.resources import SCHEME, resolve


def write_student(
    student: Student, folder: Path, export_format: Format, *, address: str | None = None
) -> None:
    """Writes a student into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        student: What to write; its network may be changed by that.
        folder: Where to, see `check_free`.
        export_format: What as.
        address: What the card's snippet loads; None is the folder itself.

    Raises:
        FewstepError: The format cannot hold this student.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        export_format.write(student, temporary)
        write_json(temporary / NOTE, _note(student, export_format))
        write_card(temporary, student, export_format, address or str(folder))


def check_free(folder: Path) -> None:
    """Checks that an export may be written to a folder: it is new, empty or an export.

    Raises:
        FewstepError: It holds something else.
    """
    if folder.exists() and not (folder / NOTE).is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return
        raise FewstepError(
            f"{folder}: exists and is not an export; choose another folder", code="exists"
        )


def _note(student: Student, export_format: Format) -> dict[str, Any]:
    note = {
        "format": export_format.name,
        "backbone": student.backbone.name,
        "options": dict(student.options),
        "size": list(student.size),
        "steps": STEPS,
        "shift": student.shift,
        "terminal": student.terminal,
        "base_sigmas": student.base_sigmas,
        "guidance": 1.0,
        "step": student.step,
    }
    return note | ({"base": base_address(student)} if export_format.adapter else {})


def base_address(student: Student) -> str:
    """How an adapter finds its base model again: an absolute path, a `package://`, or a repo id."""
    path = resolve(student.teacher)
    is_path = path.exists() and not student.teacher.startswith(SCHEME)
    return str(path.absolute()) if is_path else student.teacher
