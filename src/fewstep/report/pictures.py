"""Pictures of a run as base64 PNG, small enough to mail."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageStat

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import read_json, regular_file

_LARGEST = 320  # pixels on the longer side of a gallery's picture
_LARGEST_SHEET = 1400
_LARGEST_TILE = 512
_GAP = 2  # pixels right of and below each picture of a preview sheet
_TINY = 160  # pixels below which enlarging should keep the pixels crisp
_SHEETS = 6


def side_by_side(folder: Path, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The teacher at its best, the teacher at 4 steps, the student at 4."""
    rows: list[dict[str, Any]] = evaluation["configurations"]
    best = [row for row in rows if row["name"] == evaluation.get("reference")]
    few = [row for row in rows if row["steps"] == 4 and row not in best]
    students = [row for row in few if row["model"] == "student"]
    teachers = [row for row in few if row["model"] == "teacher"]
    return _gallery(folder, [*best, *teachers, *students]) if students else None


def by_steps(folder: Path, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The student at every number of steps that was evaluated."""
    students = [row for row in evaluation["configurations"] if row["model"] == "student"]
    ordered = sorted(students, key=lambda row: row["steps"])
    return _gallery(folder, ordered) if len(ordered) > 1 else None


def _gallery(folder: Path, configurations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Prompts down, configurations across; prompts that lack a picture are left out."""
    shown = read_json(folder / "evaluation" / "gallery.json")
    if shown is None or not configurations:
        return None
    rows = []
    for index, prompt in enumerate(shown["prompts"]):
        files = [folder / configuration["gallery"][index] for configuration in configurations]
        if all(file.is_file() for file in files):
            pictures = [picture(file, _LARGEST) for file in files]
            rows.append({"prompt": prompt, "seed": shown["seed"] + index, "pictures": pictures})
    return {"columns": list(map(_column, configurations)), "rows": rows} if rows else None


def _column(configuration: dict[str, Any]) -> dict[str, Any]:
    """Heading of a configuration, and whether it is the one to look at."""
    model, steps = configuration["model"], configuration["steps"]
    count, guidance = configuration["evaluations"], configuration["guidance"]
    how = f"guidance {guidance:g}" if guidance != 1.0 else "no guidance"
    how += "" if configuration.get("own_shift", True) else ", shift changed"
    return {
        "title": f"{model.title()}, {steps} step{'s' if steps > 1 else ''}",
        "detail": f"{count} evaluation{'s' if count > 1 else ''}, {how}",
        "steps": steps,
        "focus": model == "student" and steps == 4,
    }


def previews(folder: Path) -> dict[str, Any] | None:
    """A few of the run's preview sheets (the first, the last, some between) and what they show."""
    files = sorted((folder / "previews").glob("*.png"))
    if not files:
        return None
    picked = sorted({round(i * (len(files) - 1) / (_SHEETS - 1)) for i in range(_SHEETS)})
    columns = (read_json(folder / "previews" / "previews.json") or {}).get("columns")
    sheets = []
    for file in (files[i] for i in picked):
        with suppress(OSError, SyntaxError, ValueError):  # a damaged one is left out
            shown = picture(regular_file(file), _LARGEST_SHEET)
            sheets.append((re.sub("-0*(?=.)", " ", file.stem), shown))
    return {"columns": columns if isinstance(columns, list) else [], "sheets": sheets}


def picture(file: Path, largest: int) -> dict[str, Any]:
    """A picture as a data URI with its size, made smaller if a side exceeds `largest` pixels.

    The page should enlarge one that is `tiny` without smoothing.
    """
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    text = base64.b64encode(as_png(image)).decode("ascii")
    size = {"width": image.width, "height": image.height, "tiny": max(image.size) < _TINY}
    return {"source": f"data:image/png;base64,{text}"} | size


def tiles(file: Path, rows: int, columns: int) -> list[list[Image.Image]]:
    """The single pictures of a preview sheet, row by row, none larger than a gallery's.

    Raises:
        OSError: It is damaged, or no longer there.
    """
    try:
        with Image.open(regular_file(file)) as opened:
            sheet = opened.convert("RGB")
    except (FewstepError, SyntaxError, ValueError) as error:
        raise OSError(f"{file}: {error}") from error
    width, height = sheet.width // columns, sheet.height // rows
    found = []
    for row in range(rows):
        boxes = [(width * column, height * row) for column in range(columns)]
        cut = [sheet.crop((x, y, x + width - _GAP, y + height - _GAP)) for x, y in boxes]
        for each in cut:
            each.thumbnail((_LARGEST_TILE, _LARGEST_TILE), Image.Resampling.LANCZOS)
        found.append(cut)
    return found


def as_png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def brightness(image: Image.Image) -> float:
    """Mean brightness, from black (0) to white (1)."""
    return float(ImageStat.Stat(image.convert("L")).mean[0]) / 255
