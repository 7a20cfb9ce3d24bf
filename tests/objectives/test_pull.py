"""The operation: its gradient is the direction over the norm, and its repairs are narrow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.objectives import pull_loss, pull_norm


def latents(seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 2, 3, generator=rng) for _ in range(3))


@given(seed=st.integers(0, 1000), floor=st.floats(0.01, 3))
def test_the_gradient_descends_along_the_direction(seed, floor):
    x0, direction, reference = latents(seed)
    x0.requires_grad_()
    (gradient,) = torch.autograd.grad(pull_loss(x0, direction, reference, floor), x0)
    k = pull_norm(x0, reference, floor=floor)[:, None, None]
    torch.testing.assert_close(gradient, -2 * direction / k / x0.numel(), rtol=1e-4, atol=1e-6)


def test_the_norm_is_per_sample_floored_and_detached():
    x0, _, _ = latents()
    x0.requires_grad_()
    offset = torch.tensor([0.0, 0.05, 0.5, 2.0])
    k = pull_norm(x0, x0.detach() + offset[:, None, None])
    torch.testing.assert_close(k, torch.tensor([0.1, 0.1, 0.5, 2.0]))
    assert not k.requires_grad


def test_the_mean_is_the_mean_of_the_samples():
    x0, direction, reference = latents()
    each = pull_loss(x0, direction, reference, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), pull_loss(x0, direction, reference))


def test_no_gradient_reaches_direction_or_reference():
    x0, direction, reference = (each.requires_grad_() for each in latents())
    loss = pull_loss(x0, direction, reference)
    got = torch.autograd.grad(loss, [x0, direction, reference], allow_unused=True)
    assert [each is None for each in got] == [False, True, True]


def test_arithmetic_is_float32():
    x0, direction, reference = (each.bfloat16() for each in latents())
    assert pull_loss(x0, direction, reference).dtype == torch.float32


def test_a_broken_direction_is_no_pull():
    x0, direction, reference = latents()
    direction[1] = torch.nan
    loss = pull_loss(x0, direction, reference, reduction="none")
    assert loss[1] == 0
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_student_is_not_hidden(value):
    x0, direction, reference = latents()
    x0[1] = value
    assert not torch.isfinite(pull_loss(x0, direction, reference))
