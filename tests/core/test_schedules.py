"""Laws stay in range, grids fall, shifts keep order and agree with diffusers' scheduler."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fewstep.core import schedules
from fewstep.core.schedules import (
    SIGMA_MAX,
    SIGMA_MIN,
    ExponentialShift,
    FixedGrid,
    LogitNormal,
    RandomGrid,
    StaticShift,
    Uniform,
    UpToAnchor,
)

LAWS = [Uniform(), Uniform(low=0.3, high=0.6), UpToAnchor(), LogitNormal(mean=-0.5, std=1.5)]
U = (torch.arange(1000) + 0.5) / 1000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("law", LAWS, ids=str)
@given(u=st.floats(2**-24, 1 - 2**-24), anchor=st.floats(0, 1))
def test_every_sampled_sigma_is_clamped(law, u, anchor):
    sigma = law(torch.tensor([u]), torch.tensor([anchor]))
    assert torch.isfinite(sigma).all()
    assert torch.equal(sigma, sigma.clamp(SIGMA_MIN, SIGMA_MAX))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_law_is_an_inverse_distribution_function(law):
    assert (law(U, torch.full_like(U, 0.8)).diff() >= 0).all()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_recipe_can_spell_a_law(law):
    adapter = TypeAdapter(schedules.Law)
    assert adapter.validate_python(adapter.dump_python(law, mode="json")) == law


def test_up_to_anchor_never_passes_the_anchor():
    anchor = torch.linspace(0.05, 1, 1000)
    assert (UpToAnchor()(U, anchor) <= anchor).all()


def test_uniform_has_uniform_moments():
    sigma = Uniform(low=0.2, high=0.6)(U, U)
    assert sigma.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert sigma.var().item() == pytest.approx(0.4**2 / 12, rel=1e-2)


def test_logit_normal_has_normal_logits():
    logits = torch.logit(LogitNormal(mean=0.3, std=0.7)(U, U))
    assert logits.mean().item() == pytest.approx(0.3, abs=1e-2)
    assert logits.std().item() == pytest.approx(0.7, rel=1e-2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Uniform(low=0.5, high=0.5),
        lambda: Uniform(low=-0.1),
        lambda: LogitNormal(std=0.0),
        lambda: RandomGrid(low=0.9, high=0.1),
        lambda: RandomGrid(min_steps=5, max_steps=4),
        lambda: RandomGrid(max_steps=0),
        lambda: FixedGrid(sigmas=(0.5, 1.0)),
        lambda: FixedGrid(sigmas=(1.0, 0.0)),
        lambda: FixedGrid(sigmas=()),
        lambda: FixedGrid(shift=0.0),
        lambda: StaticShift(0.0),
        lambda: ExponentialShift(1.0, terminal=1.0),
    ],
)
def test_impossible_settings_raise(build):
    with pytest.raises(ValidationError):
        build()


# ------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("stratified", [False, True])
def test_a_random_grid_starts_at_one_and_falls(stratified):
    grid = RandomGrid(stratified=stratified)
    for seed in range(50):
        sigmas = grid(generator(seed))
        assert 1 <= len(sigmas) <= 28
        assert sigmas[0] == 1
        assert (sigmas.diff() <= 0).all()
        assert ((sigmas[1:] >= 0.25) & (sigmas[1:] <= 0.95)).all()


def test_a_random_grid_draws_every_length_equally():
    rng = generator()
    lengths = [len(RandomGrid(min_steps=2, max_steps=5)(rng)) for _ in range(2000)]
    counts = np.bincount(lengths, minlength=6)
    assert counts[:2].sum() == 0
    assert (abs(counts[2:] - 500) < 100).all()


def test_a_stratified_grid_puts_one_sigma_in_each_cell():
    sigmas = RandomGrid(low=0.0, high=1.0, min_steps=9, max_steps=9, stratified=True)(generator())
    assert sigmas[1:].flip(0).mul(8).floor().tolist() == list(range(8))


def test_a_fixed_grid_is_what_was_asked_for():
    assert FixedGrid()(generator()).tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("steps", range(1, 9))
def test_few_step_sigmas_are_evenly_spaced(steps):
    sigmas = schedules.few_step_sigmas(steps)
    assert len(sigmas) == steps
    assert sigmas[0] == 1
    assert np.diff([*sigmas, 0]) == pytest.approx(np.full(steps, -1 / steps))


def test_no_steps_raise():
    with pytest.raises(ValueError):
        schedules.few_step_sigmas(0)


def test_with_shift_shifts_and_ends_at_zero():
    sigmas = schedules.with_shift(torch.tensor([1.0, 0.75, 0.5, 0.25]), StaticShift(3.0))
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))


# ------------------------------------------------------------------------------------- shifts

SHIFTS = [
    (StaticShift(3.0), {"shift": 3.0}, None),
    (ExponentialShift(1.15), {"use_dynamic_shifting": True}, 1.15),
    (
        ExponentialShift(0.69355, terminal=0.02),
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        0.69355,
    ),
]


@pytest.mark.parametrize("shift, config, mu", SHIFTS)
@pytest.mark.parametrize("steps", [2, 4, 8, 28])
def test_shifts_agree_with_diffusers(shift, config, mu, steps):
    base = schedules.few_step_sigmas(steps)
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=base, mu=mu)
    torch.testing.assert_close(schedules.with_shift(torch.tensor(base), shift), scheduler.sigmas)


@pytest.mark.parametrize("shift", [shift for shift, _, _ in SHIFTS])
@given(
    sigmas=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=9, unique=True).map(
        lambda drawn: [1.0, *sorted(drawn, reverse=True)]
    )
)
def test_shifts_keep_the_kind_the_ends_and_the_order(shift, sigmas):
    as_list, as_tensor = shift(sigmas), shift(torch.tensor(sigmas, dtype=torch.float64))
    assert isinstance(as_list, list)
    assert as_tensor.tolist() == pytest.approx(as_list)
    assert as_list[0] == pytest.approx(1)
    assert all(a >= b - 1e-12 for a, b in pairwise(as_list))  # neighbours may round alike


def test_an_exponential_shift_is_the_static_shift_of_its_exponential():
    base = schedules.few_step_sigmas(6)
    assert ExponentialShift(1.15)(base) == pytest.approx(StaticShift(math.exp(1.15))(base))


def test_published_four_step_grids():
    base = schedules.few_step_sigmas(4)
    assert StaticShift(3.0)(base) == pytest.approx([1, 0.9, 0.75, 0.5])
    assert ExponentialShift(1.15)(base) == pytest.approx([1, 0.9045, 0.7595, 0.5128], abs=1e-4)


def test_a_one_step_grid_has_nothing_to_stretch():
    assert ExponentialShift(1.0, terminal=0.02)([1.0]) == [1.0]
