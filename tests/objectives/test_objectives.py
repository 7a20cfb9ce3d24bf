"""What each named objective is, and how they are evaluated together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.core.flow import x0_from_velocity
from fewstep.core.noise import Draws
from fewstep.objectives import AnchorBatch, build, by_site, evaluate

INDICES = torch.arange(5)


def ask(names, roles, anchor, cond, null, *, step=0, **settings):
    objectives = [build(name, **settings) for name in names]
    return evaluate(objectives, roles, AnchorBatch(anchor, cond, null, Draws(0, step), INDICES))


@pytest.mark.parametrize("name", ["dm", "cdm"])
def test_matching_vanishes_when_the_teachers_agree(name, roles, anchor, cond, null):
    (term,) = ask([name], replace(roles, fake_teacher_net=roles.teacher_net), anchor, cond, null)
    assert not term.direction.any()
    assert not term.loss.any()
    gradients = torch.autograd.grad(term.loss.sum(), list(roles.student_net.parameters()))
    assert not any(gradient.any() for gradient in gradients)


def test_guidance_vanishes_for_the_empty_prompt(roles, anchor, null):
    (term,) = ask(["ca"], roles, anchor, null, null)
    assert not term.direction.any()
    assert not term.loss.any()


def test_guidance_grows_with_alpha(roles, anchor, cond, null):
    (one,), (seven,) = (ask(["ca"], roles, anchor, cond, null, alpha=alpha) for alpha in (1.0, 7.0))
    torch.testing.assert_close(seven.direction, 7 * one.direction)
    torch.testing.assert_close(seven.loss, 49 * one.loss, rtol=1e-4, atol=1e-6)


def test_the_student_is_asked_once_per_site(roles, anchor, cond, null):
    terms = ask(["ca", "cdm", "dm"], roles, anchor, cond, null)
    assert roles.calls == {"student": 2, "teacher": 4, "fake_teacher": 2}
    assert [term.name for term in terms] == ["ca", "dm", "cdm"]
    assert terms[0].x0 is not terms[1].x0
    assert torch.equal(terms[0].x0, terms[1].x0)


def test_together_is_the_same_as_alone(roles, anchor, cond, null):
    names = ["ca", "dm", "cdm"]
    for name, together in zip(names, ask(names, roles, anchor, cond, null), strict=True):
        (alone,) = ask([name], roles, anchor, cond, null)
        assert torch.equal(together.loss, alone.loss)


def test_groups_keep_the_order():
    objectives = [build(name) for name in ("cdm", "ca", "dm")]
    groups = [[each.name for each in group] for group in by_site(objectives)]
    assert groups == [["cdm"], ["ca", "dm"]]


def test_every_probe_draws_its_own_sigma_and_noise(roles, anchor, cond, null):
    terms = ask(["ca", "dm", "cdm"], roles, anchor, cond, null)
    probes = [(xt, sigma) for role, xt, sigma in roles.asked if role == "teacher"]
    (ca, ca_null, dm, cdm), x0 = probes, [term.x0 for term in terms]
    assert torch.equal(ca[0], ca_null[0])
    assert torch.equal(ca[1], ca_null[1])
    assert (ca[1] <= anchor.sigma).all()
    sigma = torch.stack([ca[1], dm[1], cdm[1]])
    assert all(len(each.unique()) == 3 for each in sigma.T)
    noise = [
        (xt - (1 - s[:, None, None]) * clean) / s[:, None, None]
        for (xt, s), clean in zip([ca, dm, cdm], x0, strict=True)
    ]
    assert not any(torch.isclose(a, b).any() for a, b in [noise[:2], noise[1:], noise[::2]])


def test_cdm_asks_the_student_at_the_moved_point(roles, anchor, cond, null):
    (term,) = ask(["cdm"], roles, anchor, cond, null)
    role, xt, sigma = roles.asked[0]
    assert role == "student"
    assert not torch.isclose(sigma, anchor.sigma).any()
    moved = anchor.xt + (sigma - anchor.sigma)[:, None, None] * anchor.velocity
    torch.testing.assert_close(xt, moved)
    torch.testing.assert_close(
        term.x0, x0_from_velocity(xt, roles.student_net(xt, sigma, cond), sigma).detach()
    )


def test_the_weight_follows_its_points():
    warm = build("cdm", weight=[[0, 0.0], [4, 2.0]])
    assert [warm.weight_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    fading = build("ca", weight=[[2, 1.0], [4, 0.5]])
    assert [fading.weight_at(step) for step in range(5)] == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert build("cdm", weight=2.0).weight_at(0) == build("cdm", weight=2).weight_at(9) == 2.0


def test_the_weight_scales_the_loss_only(roles, anchor, cond, null):
    (full,) = ask(["dm"], roles, anchor, cond, null, step=1)
    (half,) = ask(["dm"], roles, anchor, cond, null, step=1, weight=[[0, 0.0], [4, 1.0]])
    torch.testing.assert_close(half.loss, 0.5 * full.loss)
    assert torch.equal(half.direction, full.direction)
    assert torch.equal(half.norm, full.norm)


@pytest.mark.parametrize("names", [["ca", "dm", "cdm"], ["isg", "dm"]])
def test_shared_calls_change_nothing_but_their_number(names, roles, anchor, cond, null):
    batch = AnchorBatch(anchor, cond, null, Draws(0, 0), INDICES)
    objectives = [build(name) for name in names]
    apart = evaluate(objectives, roles, batch)
    calls, before = dict(roles.calls), roles.calls.clear()
    shared = evaluate(objectives, roles, batch, batched=True)
    assert before is None and roles.calls["teacher"] < calls["teacher"]
    for one, other in zip(apart, shared, strict=True):
        torch.testing.assert_close(one.loss, other.loss)
        torch.testing.assert_close(one.direction, other.direction)


def test_a_known_prediction_at_the_anchor_is_used_instead_of_a_call(roles, anchor, cond, null):
    velocity = roles.student_net(anchor.xt, anchor.sigma, cond)
    batch = AnchorBatch(anchor, cond, null, Draws(0, 0), INDICES, velocity)
    terms = evaluate([build("dm"), build("cdm")], roles, batch)
    assert roles.calls["student"] == 1  # CDM's own site
    (alone,) = ask(["dm"], roles, anchor, cond, null)
    assert torch.equal(terms[0].loss, alone.loss)
    (gradient,) = torch.autograd.grad(terms[0].loss.sum(), velocity)
    assert gradient.any()
