"""What state.json of a checkpoint must hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

FORMAT, SHARDED = 1, 2

_FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]  # in this folder
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Sealed(BaseModel):
    """What every checkpoint has, whoever saved it.

    Attributes:
        format: Files whole, one a group, or sharded.
        step: Finished iterations.
        files: Name -> SHA-256 of every file of tensors.
        score: Of the step's preview; None: there was none.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1, 2]
    step: NonNegativeInt
    files: dict[_FileName, _Sha256]
    score: float | None = None


class SavedRun(Sealed):
    """What a run goes on from, see `train.state.state`."""

    scores: dict[int, float]
    evaluations: NonNegativeInt
    seconds: float
    updates: dict[str, NonNegativeInt]
    pending_metrics: dict[str, float]
    identity: dict[str, str | None]
    recipe: dict[str, Any]
