"""A draw is a function of seed, step, name and global sample index, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fewstep.core.noise import Draws

KINDS = {
    "normal": lambda draws, indices: draws.normal("a", indices, (2, 3)),
    "uniform": lambda draws, indices: draws.uniform("a", indices),
    "integers": lambda draws, indices: draws.integers("a", indices, 1_000_000),
}
kinds = pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)


@kinds
@given(cut=st.integers(1, 7))
def test_splitting_the_batch_changes_nothing(draw, cut):
    draws, indices = Draws(seed=1, step=2), torch.arange(8)
    parts = [draw(draws, indices[:cut]), draw(draws, indices[cut:])]
    assert torch.equal(torch.cat(parts), draw(draws, indices))


@kinds
@given(order=st.permutations(range(6)))
def test_permuting_the_indices_permutes_the_draws(draw, order):
    draws = Draws(seed=1, step=2)
    assert torch.equal(draw(draws, order), draw(draws, range(6))[torch.tensor(order)])


@kinds
def test_seed_step_and_index_each_matter(draw):
    draws = [
        draw(Draws(seed, step), [index])
        for seed in (1, 11)
        for step in (2, 12)
        for index in (3, 13)
    ]
    assert len({tuple(each.flatten().tolist()) for each in draws}) == len(draws)


def test_names_are_independent_streams():
    draws, indices = Draws(seed=0, step=0), range(4000)
    pair = np.corrcoef(draws.uniform("site", indices), draws.uniform("probe", indices))
    assert abs(pair[0, 1]) < 0.05


def test_normal_is_normal_and_float32():
    values = Draws(seed=0, step=0).normal("eps", range(200), (50,))
    assert values.dtype == torch.float32
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3


def test_uniform_is_uniform_in_the_open_interval():
    values = Draws(seed=0, step=0).uniform("sigma", range(5000))
    assert values.dtype == torch.float32
    assert (values > 0).all()
    assert (values < 1).all()
    assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3


def test_integers_cover_their_range_equally():
    values = Draws(seed=0, step=0).integers("anchor", range(4000), 4)
    assert values.dtype == torch.int64
    assert (abs(torch.bincount(values, minlength=4) - 1000) < 150).all()


def test_the_shared_stream_knows_no_samples():
    first, again = (torch.rand(3, generator=Draws(1, 2).shared("grid")) for _ in range(2))
    other = torch.rand(3, generator=Draws(1, 3).shared("grid"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
