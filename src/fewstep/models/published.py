"""Published models of a family: rows of the table of models."""

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
        parameters: Parameters of the network that is trained, in billions.
        shift: The shift of its scheduler, for people; the loaded scheduler's is used.
        encoders: Its text encoders.
        pipeline: Its diffusers class; empty: the family's first.
        status: ``settings published``: settings of its distillation have been published.
            ``untested at full size``: only a tiny pipeline of the same classes has been run.
        notes: A sentence to know before starting.
    """

    model: str
    repo: str
    parameters: float
    shift: str
    encoders: str
    pipeline: str = ""
    status: str = UNTESTED
    notes: str = ""
