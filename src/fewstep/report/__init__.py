"""report.html: what a run came to, in one file that needs nothing else."""

from __future__ import annotations

from fewstep.report.page import write_report

__all__ = ["write_report"]
