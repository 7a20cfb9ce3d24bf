"""Writing an export: the format's files, a model card, and a note on how to load them."""

from __future__ import annotations

from pathlib import Path

from fewstep.export.base import STEPS, Format, Student
from fewstep.export.card import write_card
from fewstep.export.note import NOTE, Note, check_free
from fewstep.utils.files import digest_model, replacing, sha256_of, write_json
from fewstep.utils.privacy import public, public_values


def write_student(
    student: Student, folder: Path, export_format: Format, *, address: str | None = None
) -> None:
    """Writes a student into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        student: What to write; its network may be changed by that.
        folder: Where to, see `check_free`.
        export_format: What as.
        address: What the card's snippet loads; None is the folder that the card lies in.

    Raises:
        FewstepError: The format cannot hold this student, or the folder holds something else.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        export_format.write(student, temporary)
        write_card(temporary, student, export_format, address=address)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): sha256_of(path) for path in files}
        write_json(temporary / NOTE, _note(student, export_format, sums).model_dump(mode="json"))
        check_free(folder)  # again: what was put there meanwhile must not go


def _note(student: Student, export_format: Format, files: dict[str, str]) -> Note:
    return Note(
        format=export_format.name,
        backbone=student.backbone.name,
        options=public_values(dict(student.options)),
        size=list(student.size),
        steps=STEPS,
        shift=student.shift,
        terminal=student.terminal,
        base_sigmas=student.base_sigmas,
        step=student.step,
        base=public(student.teacher) if export_format.adapter else None,
        base_fingerprint=_fingerprint(student) if export_format.adapter else None,
        files=files,
    )


def _fingerprint(student: Student) -> str | None:
    """Of the teacher: as it was when the run began, else as it is."""
    return student.fingerprint or digest_model(student.backbone.source)
