"""Reading metrics.jsonl, of a run that has ended or of one that still writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fewstep.utils.errors import FewstepError
from fewstep.utils.files import regular_file

Row: TypeAlias = dict[str, Any]


class GrowingMetrics:
    """The rows of a metrics.jsonl, of which each look reads only what came since the last one.

    Attributes:
        rows: All rows so far, in the order of the file.
        beginnings: How often the file was read from its start: another one has taken its place, as
            when a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        """Reads nothing yet; the file need not be there."""
        self.rows: list[Row] = []
        self.beginnings = 0
        self._path = path
        self._file: tuple[int, int] | None = None
        self._end = 0

    def look(self) -> list[Row]:
        """Rows that are new. A line that is not whole yet is left for the next look."""
        try:
            with regular_file(self._path).open("rb") as file:
                status = os.fstat(file.fileno())
                identity = status.st_dev, status.st_ino
                if identity != self._file or status.st_size < self._end:
                    self._file, self._end, self.rows = identity, 0, []
                    self.beginnings += 1
                file.seek(self._end)
                whole, newline, _ = file.read().rpartition(b"\n")
        except (OSError, FewstepError):
            return []
        self._end += len(whole) + len(newline)
        found = parsed(whole.decode("utf-8", "replace").splitlines())
        self.rows += found
        return found


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, as `joined` has them; none if it cannot be read.

    Half a line at the end, of a run that was killed, is left out.
    """
    try:
        content = regular_file(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, FewstepError):
        return []
    return joined(parsed(content.splitlines()))


def parsed(lines: Iterable[str]) -> list[Row]:
    """The lines that hold a step; what is no number is left out."""
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            found = row.items() if isinstance(row, dict) else ()
            numbers = {k: float(v) for k, v in found if type(v) in (int, float)}
        except (ValueError, RecursionError, OverflowError):
            continue
        if "step" in numbers:
            rows.append({**numbers, "step": row["step"]})
    return rows


def joined(rows: Sequence[Row]) -> list[Row]:
    """One row a step, in order; of several of one step, the later one wins."""
    steps: dict[float, Row] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]
