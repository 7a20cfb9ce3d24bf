"""The ODE loop: exact where it can be, one call per step, no gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core import solver
from fewstep.core.types import Conditioning

COND = Conditioning({"text": torch.zeros(3, 4)})
NOISE = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
grids = st.lists(st.floats(0.01, 0.99), max_size=12).map(
    lambda drawn: torch.tensor([1.0, *sorted(drawn, reverse=True), 0.0], dtype=torch.float64)
)


@given(sigmas=grids)
def test_a_constant_velocity_is_exact_on_any_grid(sigmas):
    constant = torch.randn_like(NOISE)
    final = solver.sample(lambda xt, sigma, cond: constant, NOISE, sigmas, COND)
    torch.testing.assert_close(final, NOISE - constant)


@given(sigmas=grids)
def test_calls_equal_steps(sigmas):
    calls = []

    def velocity(xt, sigma, cond):
        calls.append(sigma)
        return xt

    solver.sample(velocity, NOISE, sigmas, COND)
    assert len(calls) == len(sigmas) - 1
    assert torch.equal(torch.stack(calls), sigmas[:-1, None].expand(-1, 3))


def test_euler_converges_to_the_solution():
    """dx/dsigma = x has the solution x(0) = x(1) / e."""
    errors = []
    for steps in (50, 100, 200):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        final = solver.sample(lambda xt, sigma, cond: xt, NOISE, sigmas, COND)
        errors.append((final - NOISE / torch.e).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_a_simulation_keeps_what_sampling_passes(roles, cond):
    noise = torch.randn(5, 2, 3)
    sigmas = torch.tensor([1.0, 0.8, 0.3, 0.0])
    trajectory = solver.simulate(partial(roles.velocity, "student"), noise, sigmas, cond)
    assert trajectory.xt.shape == trajectory.velocity.shape == (3, 5, 2, 3)
    assert torch.equal(trajectory.xt[0], noise)
    assert torch.equal(
        trajectory.final, solver.sample(partial(roles.velocity, "student"), noise, sigmas, cond)
    )
    for step in range(3):
        sigma = sigmas[step].expand(5)
        assert torch.equal(
            trajectory.velocity[step], roles.student_net(trajectory.xt[step], sigma, cond)
        )


def test_no_gradient_is_recorded(roles, cond):
    noise = torch.randn(5, 2, 3, requires_grad=True)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    trajectory = solver.simulate(partial(roles.velocity, "student"), noise, sigmas, cond)
    assert not trajectory.final.requires_grad
    assert not trajectory.velocity.requires_grad
    assert not solver.sample(partial(roles.velocity, "student"), noise, sigmas, cond).requires_grad


def test_guidance_at_one_is_the_conditional_velocity(roles, cond, null):
    xt, sigma = torch.randn(5, 2, 3), torch.full((5,), 0.5)
    plain = roles.teacher_net(xt, sigma, cond)
    empty = roles.teacher_net(xt, sigma, null)
    one = solver.guided(partial(roles.velocity, "teacher"), null, 1.0)(xt, sigma, cond)
    three = solver.guided(partial(roles.velocity, "teacher"), null, 3.0)(xt, sigma, cond)
    torch.testing.assert_close(one, plain)
    torch.testing.assert_close(three, empty + 3 * (plain - empty))
    assert roles.calls["teacher"] == 4
