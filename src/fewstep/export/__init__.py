"""Writing a student as a folder that other programs load, with a model card; one file a format."""

from __future__ import annotations

from fewstep.export.base import Format, Student, available, find_format
from fewstep.export.write import write_student

__all__ = ["Format", "Student", "available", "find_format", "write_student"]
