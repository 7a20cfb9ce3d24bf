"""The shift of a flow-matching scheduler, read from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from fewstep.core.schedules import ExponentialShift, Shift, StaticShift
from fewstep.utils.errors import FewstepError


def shift_of(config: Mapping[str, Any], *, tokens: int) -> Shift:
    """The shift that diffusers' FlowMatchEulerDiscreteScheduler applies to base sigmas, Eq. 12.

    Args:
        config: The scheduler's configuration.
        tokens: Image tokens after patching, on which dynamic shifting depends.

    Raises:
        FewstepError: The scheduler would transform its sigmas in another way as well.
    """
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if config.get(name):
            raise FewstepError(
                f"scheduler/scheduler_config.json: {name} is on, which few-step sampling does not "
                "support; set it to false",
                code="unsupported",
            )
    terminal = config.get("shift_terminal") or None
    if not config.get("use_dynamic_shifting", False):
        static = StaticShift(float(config.get("shift", 1.0)))
        return static if terminal is None else ExponentialShift(math.log(static.shift), terminal)
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    mu = float(config["base_shift"] + slope * (tokens - low))
    linear = config.get("time_shift_type") == "linear"  # then mu itself is the static shift
    return ExponentialShift(math.log(mu) if linear else mu, terminal)


def with_static_shift(scheduler: Any, shift: float) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler of the same configuration, but with this static shift and no other."""
    return FlowMatchEulerDiscreteScheduler.from_config(
        scheduler.config, shift=shift, use_dynamic_shifting=False, shift_terminal=None
    )
