"""metrics.jsonl: a line of JSON for each logged step, always written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fewstep.utils.files import write_text

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends ``{"step": 3, "loss/dm": 0.5, ...}`` to metrics.jsonl; pictures are left out."""

    def open(self, folder: Path, config: Mapping[str, Any], *, after: int) -> None:
        """Drops the lines of steps that will come again."""
        truncate(folder / METRICS, after)
        self._file = (folder / METRICS).open("ab", buffering=0)

    def write(self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, Image]) -> None:
        """Writes a line, which the system keeps even if this process is killed.

        Raises:
            OSError: It could not be written whole; then nothing of it is in the file.
        """
        if not scalars:
            return
        line, end = (json.dumps({"step": step, **scalars}) + "\n").encode(), self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), METRICS)
        except OSError:
            self._file.truncate(end)  # half a line would hide those after it
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def last_step(file: Path) -> int:
    """Step of the last whole line of metrics.jsonl; 0 without one."""
    return max((line["step"] for line in _lines(file)), default=0)


def truncate(file: Path, step: int) -> None:
    """Drops the lines of later steps, and a line that was cut off in the middle."""
    lines = [line for line in _lines(file) if line["step"] <= step]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines up to the first one that is not whole."""
    if not file.is_file():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines
