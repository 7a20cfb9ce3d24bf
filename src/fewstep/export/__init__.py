"""From a run to a folder that plain diffusers loads, with a model card that tells how."""

from __future__ import annotations

from fewstep.export.run import export_run

__all__ = ["export_run"]
