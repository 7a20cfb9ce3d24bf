"""The pictures of a card: those of the evaluation, or cut out of the preview of its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from fewstep.export.base import STEPS, Student
from fewstep.utils.files import read_json

_MOST = 4  # the hub shows them in a row


def copy_pictures(student: Student, folder: Path) -> list[tuple[str, str]]:
    """Copies pictures that the student drew into an exported folder.

    Returns:
        Each one's prompt, and its place in the folder.
    """
    drawn = _of_evaluation(student) or _of_preview(student)
    found = []
    for number, (prompt, picture) in enumerate(drawn[:_MOST], 1):
        name = f"images/{number}.png"
        (folder / "images").mkdir(exist_ok=True)
        picture.save(folder / name)
        found.append((prompt, name))
    return found


def copy_sheet(student: Student, folder: Path) -> str | None:
    """Copies the preview of the exported checkpoint, if one was drawn then; returns its place."""
    sheet = _sheet(student)
    if not sheet.is_file():
        return None
    (folder / "images").mkdir(exist_ok=True)
    shutil.copyfile(sheet, folder / "images" / "preview.png")
    return "images/preview.png"


def _sheet(student: Student) -> Path:
    return student.folder / "previews" / f"step-{student.step:08d}.png"


def _of_evaluation(student: Student) -> list[tuple[str, Image.Image]]:
    """Prompts and pictures of the evaluation's gallery, if it is of this checkpoint."""
    evaluation = read_json(student.folder / "evaluation.json") or {}
    shown = read_json(student.folder / "evaluation" / "gallery.json") or {}
    rows = {row.get("name"): row for row in evaluation.get("configurations", ())}
    files = (rows.get(f"student@{STEPS}") or {}).get("gallery") or ()
    paths = [student.folder / file for file in files]
    if evaluation.get("step") != student.step or not all(path.is_file() for path in paths):
        return []
    return [
        (str(prompt), Image.open(path))
        for prompt, path in zip(shown.get("prompts", ()), paths, strict=False)
    ]


def _of_preview(student: Student) -> list[tuple[str, Image.Image]]:
    """Prompts and the student's column of the preview; columns are as wide as one another."""
    note = read_json(student.folder / "previews" / "previews.json") or {}
    columns, rows = note.get("columns") or [], note.get("rows") or []
    wanted, (height, width) = f"student, {STEPS} steps", student.size
    if wanted not in columns or not _sheet(student).is_file():
        return []
    with Image.open(_sheet(student)) as sheet:
        across, down = sheet.width // len(columns), sheet.height // len(rows)
        left = columns.index(wanted) * across
        tops = [number * down for number in range(len(rows))]
        boxes = [(left, top, left + width, top + height) for top in tops]
        return [(str(row), sheet.crop(box)) for row, box in zip(rows, boxes, strict=True)]
