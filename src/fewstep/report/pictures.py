"""Pictures of a run as base64 PNG, small enough to mail."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.utils.files import read_json

_LARGEST = 320  # pixels on the longer side of a gallery's picture
_LARGEST_SHEET = 1400
_TINY = 160  # pixels below which enlarging should keep the pixels crisp
_SHEETS = 6


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with its size in pixels."""

    source: str
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        """Whether the page should enlarge it without smoothing."""
        return max(self.width, self.height) < _TINY


@dataclass(frozen=True)
class Column:
    """One configuration in a gallery."""

    title: str
    detail: str
    steps: int
    focus: bool


@dataclass(frozen=True)
class Row:
    """One prompt in a gallery."""

    prompt: str
    seed: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """Prompts down, configurations across."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def side_by_side(folder: Path, evaluation: dict[str, Any]) -> Gallery | None:
    """The teacher at its best, the teacher at 4 steps, the student at 4."""
    rows: list[dict[str, Any]] = evaluation["configurations"]
    best = [row for row in rows if row["name"] == evaluation.get("reference")]
    few = [row for row in rows if row["steps"] == 4 and row not in best]
    students = [row for row in few if row["model"] == "student"]
    teachers = [row for row in few if row["model"] == "teacher"]
    return _gallery(folder, [*best, *teachers, *students]) if students else None


def by_steps(folder: Path, evaluation: dict[str, Any]) -> Gallery | None:
    """The student at every number of steps that was evaluated."""
    students = [row for row in evaluation["configurations"] if row["model"] == "student"]
    ordered = sorted(students, key=lambda row: row["steps"])
    return _gallery(folder, ordered) if len(ordered) > 1 else None


def _gallery(folder: Path, configurations: Sequence[dict[str, Any]]) -> Gallery | None:
    shown = read_json(folder / "evaluation" / "gallery.json")
    if shown is None or not configurations:
        return None
    columns = tuple(_column(configuration) for configuration in configurations)
    rows = []
    for index, prompt in enumerate(shown["prompts"]):
        files = [folder / configuration["gallery"][index] for configuration in configurations]
        if all(file.is_file() for file in files):
            pictures = tuple(picture(file, _LARGEST) for file in files)
            rows.append(Row(prompt, shown["seed"] + index, pictures))
    return Gallery(columns, tuple(rows)) if rows else None


def _column(configuration: dict[str, Any]) -> Column:
    steps, guided = configuration["steps"], configuration["guidance"] != 1.0
    who = "Teacher" if configuration["model"] == "teacher" else "Student"
    count = configuration["evaluations"]
    evaluations = f"{count} evaluation{'s' if count > 1 else ''}"
    how = f"guidance {configuration['guidance']:g}" if guided else "no guidance"
    how += "" if configuration.get("own_shift", True) else ", shift changed"
    focus = configuration["model"] == "student" and steps == 4
    title = f"{who}, {steps} step{'s' if steps > 1 else ''}"
    return Column(title, f"{evaluations}, {how}", steps, focus)


def previews(folder: Path) -> dict[str, Any] | None:
    """A few of the run's preview sheets (the first, the last, some between) and what they show."""
    files = sorted((folder / "previews").glob("*.png"))
    if not files:
        return None
    last = len(files) - 1
    picked = sorted({round(i * last / (_SHEETS - 1)) for i in range(_SHEETS)})
    note = read_json(folder / "previews" / "previews.json") or {}
    sheets = [(_sheet_name(files[i]), picture(files[i], _LARGEST_SHEET)) for i in picked]
    return {"columns": note.get("columns", []), "sheets": sheets}


def _sheet_name(file: Path) -> str:
    """`step 100` of step-00000100.png."""
    word, _, number = file.stem.partition("-")
    return f"{word} {int(number)}" if number.isdecimal() else file.stem


def picture(file: Path, largest: int) -> Picture:
    """A picture from a file, made smaller if its longer side exceeds `largest` pixels."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{text}", image.width, image.height)
