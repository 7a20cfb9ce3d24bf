"""Laws of the path: conversions are inverse pairs, and a change of path changes nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core import flow

SHAPES = [(4, 3), (4, 2, 5, 5), (4, 7, 6), (4, 2, 3, 4, 4)]
INVERSE_PAIRS = [
    (flow.x0_from_velocity, flow.velocity_from_x0),
    (flow.velocity_from_x0, flow.x0_from_velocity),
    (flow.eps_from_velocity, flow.velocity_from_eps),
    (flow.velocity_from_eps, flow.eps_from_velocity),
]
sigmas = st.lists(st.floats(0.02, 0.98), min_size=4, max_size=4).map(
    lambda drawn: torch.tensor(drawn, dtype=torch.float64)
)
seeds = st.integers(0, 2**31)


def latents(seed: int, shape: tuple[int, ...] = SHAPES[1], count: int = 2):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(count))


@pytest.mark.parametrize("shape", SHAPES)
def test_expand_broadcasts_one_value_per_sample(shape):
    sigma = torch.arange(4.0)
    expanded = flow.expand(sigma, torch.zeros(shape))
    assert expanded.ndim == len(shape)
    assert torch.equal((torch.ones(shape) * expanded).flatten(1)[:, 0], sigma)


@pytest.mark.parametrize("there, back", INVERSE_PAIRS)
@given(seed=seeds, sigma=sigmas)
def test_conversions_are_inverse_pairs(there, back, seed, sigma):
    xt, value = latents(seed)
    torch.testing.assert_close(back(xt, there(xt, value, sigma), sigma), value)


@given(seed=seeds, sigma=sigmas)
def test_all_conversions_agree_on_one_point(seed, sigma):
    x0, eps = latents(seed)
    xt, velocity = flow.add_noise(x0, eps, sigma), eps - x0
    torch.testing.assert_close(flow.x0_from_velocity(xt, velocity, sigma), x0)
    torch.testing.assert_close(flow.eps_from_velocity(xt, velocity, sigma), eps)
    torch.testing.assert_close(flow.velocity_from_x0(xt, x0, sigma), velocity)
    torch.testing.assert_close(flow.velocity_from_eps(xt, eps, sigma), velocity)


def test_the_path_runs_from_data_to_noise():
    x0, eps = latents(0)
    assert torch.equal(flow.add_noise(x0, eps, torch.zeros(4)), x0)
    assert torch.equal(flow.add_noise(x0, eps, torch.ones(4)), eps)


@given(seed=seeds, sigma=sigmas, sigma_next=sigmas)
def test_an_euler_step_with_the_true_velocity_stays_on_the_path(seed, sigma, sigma_next):
    x0, eps = latents(seed)
    moved = flow.euler_step(flow.add_noise(x0, eps, sigma), eps - x0, sigma, sigma_next)
    torch.testing.assert_close(moved, flow.add_noise(x0, eps, sigma_next))


# ------------------------------------------------------------------------------ change of path


@given(sigma=st.lists(st.floats(0, 1), min_size=1).map(torch.tensor))
def test_variance_preserving_coefficients_are_an_inverse_pair(sigma):
    a, b = flow.vp_from_sigma(sigma)
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))
    torch.testing.assert_close(flow.sigma_from_vp(a, b), sigma)


@given(seed=seeds, sigma=sigmas)
def test_points_of_the_two_paths_are_an_inverse_pair(seed, sigma):
    x0, eps = latents(seed)
    a, b = (flow.expand(each, x0) for each in flow.vp_from_sigma(sigma))
    x_vp, xt = a * x0 + b * eps, flow.add_noise(x0, eps, sigma)
    torch.testing.assert_close(flow.vp_from_flow(xt, sigma), x_vp)
    torch.testing.assert_close(flow.flow_from_vp(x_vp, sigma), xt)


@given(seed=seeds, sigma=sigmas, mean=st.floats(-2, 2), std=st.floats(0.1, 2))
def test_a_perfect_eps_model_becomes_the_perfect_velocity_field(seed, sigma, mean, std):
    """Data N(mean, std^2): both the eps model and the velocity field are known exactly."""
    (xt,) = latents(seed, count=1)
    a, b = (flow.expand(each, xt) for each in flow.vp_from_sigma(sigma))
    x_vp = flow.vp_from_flow(xt, sigma)
    eps_hat = b * (x_vp - a * mean) / ((a * std) ** 2 + b**2)
    s = flow.expand(sigma, xt)
    gain = ((1 - s) * std**2) / (((1 - s) * std) ** 2 + s**2)
    x0_hat = mean + gain * (xt - (1 - s) * mean)
    torch.testing.assert_close(
        flow.velocity_from_eps(xt, eps_hat, sigma), flow.velocity_from_x0(xt, x0_hat, sigma)
    )


ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)


def test_trained_times_are_found_again():
    a, b = ALPHAS_CUMPROD.sqrt(), (1 - ALPHAS_CUMPROD).sqrt()
    wanted = flow.sigma_from_vp(a, b)
    time, sigma = flow.vp_time(wanted, ALPHAS_CUMPROD)
    torch.testing.assert_close(time, torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(sigma, wanted)


def test_times_between_trained_ones_grow_with_sigma():
    time, sigma = flow.vp_time(torch.linspace(0.05, 0.95, 200), ALPHAS_CUMPROD)
    assert (time.diff() > 0).all()
    torch.testing.assert_close(sigma, torch.linspace(0.05, 0.95, 200).double())


def test_beyond_the_trained_range_the_nearest_trained_time_stands_in():
    time, sigma = flow.vp_time(torch.tensor([0.0, 1.0]), ALPHAS_CUMPROD)
    assert time.tolist() == [0, 999]
    assert 0 < sigma[0] < sigma[1] < 1
