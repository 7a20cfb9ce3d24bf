"""Which of several processes this is, as torchrun and its like say in the environment."""

from __future__ import annotations

import os

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Number of this process among all of a job; 0 where it is alone."""
    return int(os.environ["RANK"]) if _launched() else 0


def local_rank() -> int:
    """Its number on this machine, which is also that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _launched() else 0


def processes() -> int:
    """How many processes the job has."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def _launched() -> bool:
    return all(name in os.environ for name in _RENDEZVOUS)
