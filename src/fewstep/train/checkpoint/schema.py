"""What a checkpoint holds, and what its state.json must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from fewstep.utils.errors import FewstepError

FORMAT, SHARDED = 1, 2

_FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]  # in this folder
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Groups = Mapping[str, Mapping[str, Tensor]]


class BrokenCheckpointError(FewstepError):
    """A checkpoint is incomplete or damaged."""

    default_code = "damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        path: Its folder.
        state: What was saved as JSON.
        groups: What was saved as tensors: group -> name -> tensor.
    """

    path: Path
    state: dict[str, Any]
    groups: Groups


class Sealed(BaseModel):
    """What every checkpoint has, whoever saved it.

    Attributes:
        format: Files whole, one a group, or sharded.
        step: Finished iterations.
        files: Name -> SHA-256 of every file of tensors.
        score: Of the step's preview; None: there was none.
        unhealthy: Why it is not to be used; None: nothing was wrong with the run.
        past_saving: Whether the student was past saving.
        sound_until: Step up to which an unhealthy run was sound.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1, 2]
    step: NonNegativeInt
    files: dict[_FileName, _Sha256]
    score: float | None = None
    unhealthy: str | None = None
    past_saving: bool = False
    sound_until: NonNegativeInt | None = None


class SavedDivergence(BaseModel):
    """What `monitor.divergence` goes on from."""

    model_config = ConfigDict(strict=True)

    start: dict[str, float]
    values: dict[str, list[float]]
    found: dict[str, tuple[str, bool, int]]
    measured: int


class SavedRun(Sealed):
    """What a run goes on from, see `train.state.state`."""

    scores: dict[int, float]
    evaluations: NonNegativeInt
    seconds: float
    updates: dict[str, NonNegativeInt]
    pending_metrics: dict[str, float]
    identity: dict[str, str | None]
    recipe: dict[str, Any]
    divergence: SavedDivergence | None = None
