"""Sites: where the student is asked."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.flow import add_noise, velocity_from_x0
from fewstep.core.noise import Draws
from fewstep.core.schedules import LogitNormal
from fewstep.objectives.sites import AlongVelocity, AtAnchor, FreshNoise

DRAWS, INDICES = Draws(0, 0), torch.arange(5)


def test_at_the_anchor(anchor):
    xt, sigma = AtAnchor()(anchor, DRAWS, INDICES)
    assert xt is anchor.xt
    assert sigma is anchor.sigma


def test_a_move_keeps_the_x0_that_the_velocity_points_at(anchor):
    xt, sigma = AlongVelocity()(anchor, DRAWS, INDICES)
    torch.testing.assert_close(
        velocity_from_x0(xt, anchor.x0, sigma), anchor.velocity, rtol=1e-4, atol=1e-4
    )


def test_a_move_goes_both_ways(anchor):
    moves = [
        AlongVelocity()(anchor, Draws(0, step), INDICES)[1] - anchor.sigma for step in range(9)
    ]
    assert (torch.stack(moves)[:, 2] > 0).any()
    assert (torch.stack(moves)[:, 2] < 0).any()


def test_fresh_noise_forgets_the_old_noise(anchor):
    xt, sigma = FreshNoise()(anchor, DRAWS, INDICES)
    old = add_noise(anchor.x0, anchor.xt, sigma)
    assert xt.shape == old.shape
    assert not torch.isclose(xt, old).any()


@pytest.mark.parametrize("site", [AlongVelocity(), FreshNoise()])
def test_equal_sites_are_equal_points_and_others_are_not(site, anchor):
    again, other = type(site)(), type(site)(law=LogitNormal())
    assert site == again
    assert site != other
    assert torch.equal(site(anchor, DRAWS, INDICES)[0], again(anchor, DRAWS, INDICES)[0])
    assert not torch.equal(site(anchor, DRAWS, INDICES)[0], other(anchor, DRAWS, INDICES)[0])
