"""What flow-matching schedulers do to a grid, and the one scheduler that students are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewstep.core.schedules import ExponentialShift, Shift, StaticShift, Terminal
from fewstep.utils.errors import FewstepError

FILE = "scheduler/scheduler_config.json"
"""Where a pipeline's folder has these settings."""

_MOST = 1e6  # beyond such a static shift, float32 cannot tell the sigmas of a grid apart
_DYNAMIC = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")
_Tokens = Annotated[int, Field(ge=0, le=2**31)]


class FlowSettings(BaseModel):
    """The settings of a flow-matching scheduler that shape a grid, Eq. 12.

    Names and defaults are those of diffusers' FlowMatchEulerDiscreteScheduler. Settings without
    effect beside the others are at their defaults, so that equal settings make equal grids.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    shift: Annotated[float, Field(ge=1 / _MOST, le=_MOST)] = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: _Tokens = 256
    max_image_seq_len: _Tokens = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _effective(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drops what has no effect: settings of the other kind of shift, and an end of 0."""
        dynamic = values.get("use_dynamic_shifting", False) is not False
        unused = ("shift",) if dynamic else _DYNAMIC
        kept = {name: value for name, value in values.items() if name not in unused}
        if kept.get("shift_terminal") in (0, False):  # as None to the scheduler
            del kept["shift_terminal"]
        return kept

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError("base_image_seq_len and max_image_seq_len must differ")
        return self

    def at(self, tokens: int) -> Shift:
        """The shift of a picture of that many image tokens after patching.

        Raises:
            FewstepError: Dynamic shifting comes to nothing usable there.
        """
        if not self.use_dynamic_shifting:
            if self.shift_terminal is None:
                return StaticShift(self.shift)
            return ExponentialShift(math.log(self.shift), self.shift_terminal)
        low, high = self.base_image_seq_len, self.max_image_seq_len
        slope = (self.max_shift - self.base_shift) / (high - low)
        return self.at_mu(self.base_shift + slope * (tokens - low))

    def at_mu(self, mu: float) -> Shift:
        """The shift of dynamic shifting for the mu that a pipeline works out; errors of `at`."""
        linear = self.time_shift_type == "linear"  # then mu itself is the static shift
        if not 1 / _MOST <= (mu if linear else math.exp(min(mu, 99.0))) <= _MOST:
            raise FewstepError(
                f"{FILE}: dynamic shifting comes to mu {mu:g} at this size, which leaves no grid; "
                "correct base_shift and max_shift, or choose another resolution",
                code="out-of-range",
            )
        return ExponentialShift(math.log(mu) if linear else mu, self.shift_terminal)

    def for_student(self, shift: float | None, terminal: Terminal) -> FlowSettings:
        """The settings of a student's grid: with a static shift or an end of its own."""
        own = self if shift is None else FlowSettings(shift=shift)
        return own if terminal == "model" else own.model_copy(update={"shift_terminal": terminal})

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler's method on these grids, and nothing else."""
        return FlowMatchEulerDiscreteScheduler(**self.model_dump())
