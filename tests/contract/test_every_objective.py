"""What every objective owes, whoever wrote it: objectives are found by discovery."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep import objectives
from fewstep.core.noise import Draws
from fewstep.core.types import Anchor, Conditioning

OTHER_SETTINGS = [
    {"name": "dm", "teacher_guidance": {"low": 1, "high": 8}},
    {"name": "cdm", "teacher_guidance": {}, "site": {"name": "fresh_noise"}},
    {"name": "isg", "distance": {"name": "charbonnier"}},
]
ALL = [*({"name": name} for name in objectives.available()), *OTHER_SETTINGS]
pytestmark = pytest.mark.parametrize(
    "recipe", ALL, ids=lambda recipe: "-".join([recipe["name"], *[*recipe][1:]])
)


@pytest.fixture
def cond(cond) -> Conditioning:
    """The prompts of a model that takes its guidance as an input."""
    return Conditioning({**cond.tensors, "guidance": torch.full((5,), 3.5)})


@pytest.fixture
def null(null) -> Conditioning:
    """The empty prompt, likewise."""
    return Conditioning({**null.tensors, "guidance": torch.full((5,), 3.5)})


def run(recipe, roles, anchor, cond, null, rows):
    """The term of some of the samples, in the given order."""
    rows = torch.as_tensor(rows)
    part = Anchor(**{field: value[rows] for field, value in vars(anchor).items()})
    batch = objectives.AnchorBatch(part, cond.select(rows), null.select(rows), Draws(0, 7), rows)
    (term,) = objectives.evaluate([objectives.build(**recipe)], roles, batch)
    return term


def test_it_builds_from_its_name_and_round_trips(recipe):
    objective = objectives.build(**recipe)
    assert objective.name == recipe["name"]
    assert objectives.build(**objective.model_dump(mode="json")) == objective
    assert hash(objective) == hash(objectives.build(**recipe))


def test_its_shapes_and_precision(recipe, roles, anchor, cond, null):
    term = run(recipe, roles, anchor, cond, null, range(5))
    assert term.name == recipe["name"]
    assert term.loss.shape == term.norm.shape == (5,)
    assert term.direction.shape == term.x0.shape == anchor.xt.shape
    assert {each.dtype for each in (term.loss, term.norm, term.direction)} == {torch.float32}
    assert (term.loss > 0).all()
    assert (term.norm > 0).all()
    assert all(torch.isfinite(each).all() for each in (term.loss, term.norm, term.direction))


def test_the_student_answers_once_with_gradients(recipe, roles, anchor, cond, null):
    graphs = []
    roles.student_net.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    run(recipe, roles, anchor, cond, null, range(5))
    assert graphs.count(True) == 1


def test_what_it_does_not_go_with_has_a_remedy(recipe):
    reasons = objectives.build(**recipe).unsupported_guidance
    assert reasons.keys() < {"cfg", "embedded"}
    assert all("; " in reason and "\n" not in reason for reason in reasons.values())


def test_the_gradient_reaches_the_student_only(recipe, roles, anchor, cond, null):
    term = run(recipe, roles, anchor, cond, null, range(5))
    assert not any(each.requires_grad for each in (term.norm, term.direction, term.x0))
    term.loss.mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in roles.student_net.parameters())
    for frozen in (roles.teacher_net, roles.fake_teacher_net):
        assert all(p.grad is None for p in frozen.parameters())


def test_a_step_along_the_gradient_moves_x0_along_the_direction(recipe, roles, anchor, cond, null):
    term = run(recipe, roles, anchor, cond, null, range(5))
    optimizer = torch.optim.SGD(roles.student_net.parameters(), lr=1e-3)
    term.loss.mean().backward()
    optimizer.step()
    moved = run(recipe, roles, anchor, cond, null, range(5)).x0 - term.x0
    scaled = term.direction / term.norm[:, None, None]
    assert (moved * scaled).sum() > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(order=st.permutations(range(5)))
def test_permuting_the_batch_permutes_the_terms(recipe, roles, anchor, cond, null, order):
    whole = run(recipe, roles, anchor, cond, null, range(5))
    permuted = run(recipe, roles, anchor, cond, null, order)
    torch.testing.assert_close(permuted.loss, whole.loss[torch.tensor(order)])
    torch.testing.assert_close(permuted.direction, whole.direction[torch.tensor(order)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=4)
@given(cut=st.integers(1, 4))
def test_accumulated_gradients_are_the_big_batchs(recipe, roles, anchor, cond, null, cut):
    parameters = list(roles.student_net.parameters())
    whole = run(recipe, roles, anchor, cond, null, range(5)).loss.sum()
    parts = [
        run(recipe, roles, anchor, cond, null, rows).loss.sum()
        for rows in (range(cut), range(cut, 5))
    ]
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), parameters), torch.autograd.grad(whole, parameters)
    )
