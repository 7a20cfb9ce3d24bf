"""Whatever a recipe may ask of a grid, the student walks downwards from at most 1 to 0."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.schedules import (
    ExponentialShift,
    FixedGrid,
    RandomGrid,
    StaticShift,
    few_step_sigmas,
    with_shift,
    with_terminal,
)
from fewstep.core.stochastic_rounding import stochastic_round

shifts = st.floats(0.05, 30).map(StaticShift) | st.builds(
    ExponentialShift, mu=st.floats(-2.5, 3.2), terminal=st.none() | st.floats(0.01, 0.5)
)
terminals = st.sampled_from(["model", None]) | st.floats(0.01, 0.5)
grids = st.builds(
    RandomGrid,
    max_steps=st.integers(8, 28),
    min_steps=st.integers(1, 8),
    low=st.floats(0.05, 0.4),
    high=st.floats(0.5, 0.99),
    stratified=st.booleans(),
) | st.lists(st.floats(0.02, 1), min_size=1, max_size=12, unique_by=lambda s: round(s, 3)).map(
    lambda sigmas: FixedGrid(tuple(sorted(sigmas, reverse=True)))
)


@given(grid=grids, shift=shifts, terminal=terminals, seed=st.integers(0, 2**31))
def test_a_walk_goes_down_to_zero(grid, shift, terminal, seed):
    base = grid(torch.Generator().manual_seed(seed))
    walk = with_shift(base, with_terminal(shift, terminal))
    assert walk.dtype == torch.float32 and len(walk) == len(base) + 1
    assert torch.isfinite(walk).all()
    assert walk[0] <= 1 + 2**-22 and walk[-1] == 0  # to rounding
    # Neighbours may round to one value, as a random grid may draw two that are as close.
    assert (walk.diff() <= 2**-23).all() and walk[-2] > 0
    assert math.isclose(float(walk[0]), 1, rel_tol=1e-6) or base[0] < 1


@given(steps=st.integers(1, 64), shift=shifts, terminal=st.floats(0.01, 0.5))
def test_a_grid_ends_at_the_terminal_that_was_asked_for(steps, shift, terminal):
    walk = with_shift(torch.tensor(few_step_sigmas(steps)), with_terminal(shift, terminal))
    if steps > 1:
        assert math.isclose(float(walk[-2]), terminal, rel_tol=1e-3, abs_tol=1e-5)
    assert (walk.diff() < 0).all()


@given(
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=20),
    st.integers(0, 2**31),
)
def test_rounding_gives_a_neighbour_that_bfloat16_holds(values, seed):
    x = torch.tensor(values, dtype=torch.float32)
    rounded = stochastic_round(x, torch.Generator().manual_seed(seed))
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert torch.equal(stochastic_round(rounded, torch.Generator().manual_seed(seed)), rounded)
    spacing = torch.maximum(x.abs() * 2**-7, torch.tensor(2.0**-133))
    assert ((rounded - x).abs() <= spacing).all() or rounded.isinf().any()
    assert (torch.signbit(rounded) == torch.signbit(x)).all()
