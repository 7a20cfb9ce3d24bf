"""Intra-segment guidance: the target is two jumps inside the segment, the pull is on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fewstep.core.noise import Draws
from fewstep.objectives import AnchorBatch, build, evaluate
from fewstep.objectives.isg import Charbonnier, Squared

INDICES = torch.arange(5)


def ask(roles, anchor, cond, null, *others, **settings):
    terms = [*(build(name) for name in others), build("isg", **settings)]
    return evaluate(terms, roles, AnchorBatch(anchor, cond, null, Draws(0, 0), INDICES))


class Constant(nn.Module):
    """The same velocity everywhere: a straight path, on which one jump is as good as two."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, xt, sigma, cond):
        return self.value.expand_as(xt)


def test_the_three_jumps_are_those_of_the_paper(roles, anchor, cond, null):
    (term,) = ask(roles, anchor, cond, null)
    (_, start, _), (_, taught_at, _), (_, xt_mid, mid) = roles.asked
    assert [role for role, *_ in roles.asked] == ["student", "teacher", "student"]
    assert torch.equal(start, anchor.xt) and torch.equal(taught_at, anchor.xt)
    assert (mid < anchor.sigma).all() and (mid > anchor.sigma_next).all()

    def over(values):
        return values[:, None, None]

    first, last = over(mid - anchor.sigma), over(anchor.sigma_next - mid)
    by_hand = anchor.xt + first * roles.teacher_net(anchor.xt, anchor.sigma, cond)
    torch.testing.assert_close(xt_mid, by_hand)
    target = by_hand + last * roles.student_net(by_hand, mid, cond)
    jump = anchor.xt + (first + last) * roles.student_net(anchor.xt, anchor.sigma, cond)
    expected = (jump - target.detach()).square().mean((1, 2))
    torch.testing.assert_close(term.loss, expected)
    parameters = list(roles.student_net.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(term.loss.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
    )


@pytest.mark.parametrize("distance", [{"name": "l2"}, {"name": "charbonnier"}])
def test_it_vanishes_on_straight_paths_that_agree(distance, roles, anchor, cond, null):
    straight = replace(roles, student_net=Constant(0.3), teacher_net=Constant(0.3))
    (term,) = ask(straight, anchor, cond, null, distance=distance)
    torch.testing.assert_close(term.loss, torch.zeros(5), atol=1e-7, rtol=0)
    (gradient,) = torch.autograd.grad(term.loss.sum(), list(straight.student_net.parameters()))
    torch.testing.assert_close(gradient, torch.zeros(()), atol=1e-3, rtol=0)


def test_it_pulls_the_student_s_jump_towards_the_teacher_s(roles, anchor, cond, null):
    apart = replace(roles, student_net=Constant(0.0), teacher_net=Constant(1.0))
    (term,) = ask(apart, anchor, cond, null)
    # The teacher has the part of the segment above the middle point; its velocity lowers x.
    mid = roles.asked[2][2]
    expected = (mid - anchor.sigma)[:, None, None].expand_as(anchor.xt)
    torch.testing.assert_close(term.direction, expected)
    torch.testing.assert_close(term.norm, anchor.sigma - mid)
    (gradient,) = torch.autograd.grad(term.loss.sum(), list(apart.student_net.parameters()))
    assert gradient < 0


def test_a_segment_without_length_asks_for_nothing(roles, anchor, cond, null):
    (term,) = ask(roles, replace(anchor, sigma_next=anchor.sigma), cond, null)
    assert not term.loss.any()
    assert torch.isfinite(
        torch.autograd.grad(term.loss.sum(), roles.student_net.outer.bias)[0]
    ).all()


def test_it_shares_the_student_s_answer_at_the_anchor(roles, anchor, cond, null):
    terms = ask(roles, anchor, cond, null, "ca", "dm", "cdm")
    assert [term.name for term in terms] == ["ca", "dm", "isg", "cdm"]
    assert roles.calls == {"student": 2 + 1, "teacher": 4 + 1, "fake_teacher": 2}
    (alone,) = ask(roles, anchor, cond, null)
    assert torch.equal(terms[2].loss, alone.loss)
    assert torch.equal(terms[2].x0, terms[0].x0)


def test_the_weight_scales_the_loss_only(roles, anchor, cond, null):
    (full,), (half,) = (ask(roles, anchor, cond, null, weight=w) for w in (1.0, 0.5))
    torch.testing.assert_close(half.loss, full.loss / 2)
    assert torch.equal(half.direction, full.direction)


@given(gap=st.floats(-30, 30), eps=st.floats(1e-4, 0.1))
def test_charbonnier_is_the_absolute_value_smoothed(gap, eps):
    found = Charbonnier(eps=eps)(torch.full((1, 2), gap, dtype=torch.float64)).item()
    assert abs(gap) - eps <= found <= abs(gap)
    assert Charbonnier(eps=eps)(torch.zeros(1, 2)).item() == pytest.approx(0, abs=1e-8)


def test_distances_are_means_per_sample():
    gap = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    assert Squared()(gap).tolist() == [5.0, 2.0]
    torch.testing.assert_close(Charbonnier()(gap), torch.tensor([2.0, 1.0]), atol=1e-3, rtol=0)
