"""Records keep their samples together."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.flow import x0_from_velocity
from fewstep.core.types import Conditioning, Trajectory


def numbered(batch: int) -> Conditioning:
    rows = torch.arange(float(batch))
    return Conditioning({"text": rows[:, None].repeat(1, 3), "pooled": rows})


def test_batch_is_the_first_axis():
    assert numbered(5).batch == 5


@pytest.mark.parametrize("tensors", [{}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_a_conditioning_needs_one_batch(tensors):
    with pytest.raises(ValueError):
        Conditioning(tensors)


def test_select_takes_an_index_or_a_slice():
    assert numbered(5).select(torch.tensor([3, 1])).tensors["pooled"].tolist() == [3, 1]
    assert numbered(5).select(slice(1, 3)).tensors["text"][:, 0].tolist() == [1, 2]


def test_cat_undoes_select():
    whole = numbered(5)
    joined = Conditioning.cat([whole.select(slice(0, 2)), whole.select(slice(2, 5))])
    for name, tensor in whole.tensors.items():
        assert torch.equal(joined.tensors[name], tensor)


@pytest.mark.parametrize("parts", [[], [numbered(2), Conditioning({"other": torch.zeros(2)})]])
def test_only_equal_names_can_be_joined(parts):
    with pytest.raises(ValueError):
        Conditioning.cat(parts)


def test_replacing_touches_nothing_else():
    whole = numbered(3)
    other = whole.replace(pooled=torch.zeros(3))
    assert other.tensors["pooled"].tolist() == [0, 0, 0]
    assert other.tensors["text"] is whole.tensors["text"]
    assert whole.tensors["pooled"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError):
        whole.replace(guidance=torch.zeros(3))
    with pytest.raises(ValueError):
        whole.replace(pooled=torch.zeros(2))


def test_repeat_interleave_keeps_repeats_together():
    assert numbered(2).repeat_interleave(2).tensors["pooled"].tolist() == [0, 0, 1, 1]


def test_each_sample_picks_its_own_anchor():
    steps, batch = 3, 4
    xt = torch.randn(steps, batch, 2, 5)
    velocity = torch.randn(steps, batch, 2, 5)
    trajectory = Trajectory(xt, torch.tensor([1.0, 0.7, 0.4, 0.0]), velocity, torch.randn(batch, 2))
    index = torch.tensor([2, 0, 1, 2])
    anchor = trajectory.pick(index)
    for row, step in enumerate(index):
        assert torch.equal(anchor.xt[row], xt[step, row])
        assert torch.equal(anchor.velocity[row], velocity[step, row])
        assert anchor.sigma[row] == trajectory.sigmas[step]
        assert anchor.sigma_next[row] == trajectory.sigmas[step + 1]
    expected = x0_from_velocity(anchor.xt, anchor.velocity, anchor.sigma)
    assert torch.equal(anchor.x0, expected)
    assert anchor.final is trajectory.final


def test_lengths_stay_with_their_samples_and_on_the_cpu():
    mask = torch.arange(4) < torch.tensor([[1], [3], [2]])
    there = Conditioning({"mask": mask, "text": torch.zeros(3, 4)}).counted().to("meta")
    assert there.lengths.tolist() == [1, 3, 2]
    assert there.select(torch.tensor([2, 0])).lengths.tolist() == [2, 1]
    assert there.select(slice(1, 3)).lengths.tolist() == [3, 2]
    assert there.repeat_interleave(2).lengths.tolist() == [1, 1, 3, 3, 2, 2]
    joined = Conditioning.cat([there, there.select(slice(1))])
    assert joined.lengths.tolist() == [1, 3, 2, 1]
    assert joined.replace(text=joined.tensors["text"]).lengths is joined.lengths
    assert numbered(2).counted().lengths is None, "without a mask nothing is counted"
