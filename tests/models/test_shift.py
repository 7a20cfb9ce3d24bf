"""The shift of a scheduler's configuration is what that scheduler does."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fewstep.core.schedules import few_step_sigmas, with_shift
from fewstep.models.shift import shift_of
from fewstep.utils.errors import FewstepError

TOKENS = 1024
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.9, "max_shift": 2.0}


@pytest.mark.parametrize(
    "options",
    [
        {"shift": 3.0},
        {"shift": 3.0, "shift_terminal": 0.02},
        DYNAMIC,
        {**DYNAMIC, "shift_terminal": 0.02},
        {**DYNAMIC, "time_shift_type": "linear"},
        {**DYNAMIC, "time_shift_type": "linear", "shift_terminal": 0.1},
    ],
    ids=str,
)
def test_grids_are_those_of_the_scheduler(options):
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    mu = config.base_shift + slope * (TOKENS - config.base_image_seq_len)
    base = few_step_sigmas(4)
    scheduler.set_timesteps(sigmas=base, mu=mu if config.use_dynamic_shifting else None)
    found = with_shift(torch.tensor(base), shift_of(config, tokens=TOKENS))
    torch.testing.assert_close(found, scheduler.sigmas)


@pytest.mark.parametrize("name", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_other_bends_are_refused(name):
    config = FlowMatchEulerDiscreteScheduler(**{name: True}).config
    with pytest.raises(FewstepError) as caught:
        shift_of(config, tokens=TOKENS)
    assert caught.value.code == "unsupported"
