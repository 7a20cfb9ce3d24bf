"""The fake teacher: its loss is flow matching's, its pull is a weighted mean."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from fewstep.core.noise import Draws
from fewstep.core.types import Anchor
from fewstep.objectives import fake_teacher
from refusals import refuses

X0 = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))


def test_the_true_velocity_has_no_loss():
    assert fake_teacher.denoising_loss(EPS - X0, X0, EPS) == 0


def test_the_loss_is_the_mean_over_samples():
    each = fake_teacher.denoising_loss(X0, X0, EPS, reduction="none")
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), fake_teacher.denoising_loss(X0, X0, EPS))


def test_an_unknown_reduction_raises():
    with refuses("unknown-name"):
        fake_teacher.denoising_loss(X0, X0, EPS, reduction="maen")


def update(roles, anchor, cond, rows=slice(None), **settings):
    chosen = torch.arange(5)[rows]
    part = type(anchor)(**{name: value[rows] for name, value in vars(anchor).items()})
    return fake_teacher.update_loss(
        partial(roles.velocity, "fake_teacher"),
        part,
        cond=cond.select(rows),
        draws=Draws(0, 3),
        indices=chosen,
        **settings,
    )


def test_an_update_reaches_the_fake_teacher_alone(roles, anchor, cond):
    update(roles, anchor, cond).mean().backward()
    assert roles.calls == {"fake_teacher": 1}
    assert all(p.grad is not None for p in roles.fake_teacher_net.parameters())


def test_splitting_the_batch_changes_nothing(roles, anchor, cond):
    whole = update(roles, anchor, cond)
    parts = [update(roles, anchor, cond, rows) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_target_can_be_the_final_latent(roles, anchor, cond):
    end = replace(anchor, x0=anchor.final)
    final = update(roles, anchor, cond, target={"final": 1.0})
    torch.testing.assert_close(final, update(roles, end, cond))
    assert not torch.allclose(final, update(roles, anchor, cond))
    with refuses("unknown-name"):
        update(roles, anchor, cond, target={"finall": 1.0})


@pytest.mark.parametrize("odds", [{"x0": 1.0, "final": 2.0}, {"final": 4.0, "x0": 2.0}])
def test_odds_choose_a_target_for_each_sample(odds):
    count = 3000
    u = (torch.arange(count) + 0.5) / count
    here, end = torch.zeros(count, 2, 3), torch.ones(count, 2, 3)
    at = Anchor(here, u, u, velocity=here, x0=here, final=end)
    chosen = fake_teacher.choose_target(at, odds, u)
    assert torch.equal(chosen.amin((1, 2)), chosen.amax((1, 2)))  # all of a sample or nothing
    assert chosen.mean() == pytest.approx(2 / 3, abs=1e-3)
    assert torch.equal(fake_teacher.choose_target(at, {"x0": 3.0}, u), here)


def test_splitting_the_batch_changes_no_choice(roles, anchor, cond):
    odds = {"x0": 1.0, "final": 1.0}
    whole = update(roles, anchor, cond, target=odds)
    parts = [update(roles, anchor, cond, row, target=odds) for row in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)
    alone = [update(roles, anchor, cond, target={name: 1.0}) for name in odds]
    assert all(not torch.allclose(whole, each) for each in alone)


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.03, 1.0])
def test_the_pull_is_a_weighted_mean(roles, rate):
    fake = [p.clone() for p in roles.fake_teacher_net.parameters()]
    student = list(roles.student_net.parameters())
    expected = [(1 - rate) * f + rate * s for f, s in zip(fake, student, strict=True)]
    before = [p.clone() for p in student]
    fake_teacher.mix_weights(fake, student, rate)
    torch.testing.assert_close(fake, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, student, strict=True))


def test_the_pull_works_on_parameters_in_place(roles):
    fake_teacher.mix_weights(
        roles.fake_teacher_net.parameters(), roles.student_net.parameters(), 1.0
    )
    for fake, student in zip(
        roles.fake_teacher_net.parameters(), roles.student_net.parameters(), strict=True
    ):
        assert torch.equal(fake, student)
        assert fake.requires_grad


def test_nothing_to_pull_is_fine_and_a_mismatch_is_not():
    fake_teacher.mix_weights([], [], 0.5)
    fake, student = [torch.zeros(1)], [torch.ones(1), torch.ones(1)]
    with pytest.raises(ValueError):
        fake_teacher.mix_weights(fake, student, 0.5)
    assert not fake[0].any(), "nothing was pulled"
