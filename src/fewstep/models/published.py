"""What a family says about its published models: rows of the table of models."""

from __future__ import annotations

from dataclasses import dataclass

UNTESTED = "untested at full size"
SETTINGS = "settings published"


@dataclass(frozen=True)
class Published:
    """A published model that can be a teacher.

    Attributes:
        model: Its name.
        repo: Its id on the Hugging Face Hub.
        parameters: Of the network that is trained, in billions.
        shift: What its scheduler does to base sigmas; the loaded scheduler has the last word.
        encoders: Its text encoders.
        pipeline: Its diffusers class; empty: the family's first.
        status: ``settings published``: somebody published what it was distilled with.
            ``untested at full size``: only the tiny twin of its classes was run here.
        notes: What to know before starting.
    """

    model: str
    repo: str
    parameters: float
    shift: str
    encoders: str
    pipeline: str = ""
    status: str = UNTESTED
    notes: str = ""
