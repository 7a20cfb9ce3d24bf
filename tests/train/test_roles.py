"""Student, teacher and fake teacher: three networks, or one with two adapters."""

from __future__ import annotations

import copy

import pytest
import torch

from fewstep import models
from fewstep.core.noise import Draws
from fewstep.train.memory.adapters import adapter_parameters
from fewstep.train.roles import (
    FAKE_TEACHER,
    STUDENT,
    TEACHER,
    TRAINED,
    become_student,
    load_parameters,
)
from refusals import refuses

LORA = ["student.mode=lora", "student.lora.rank=4"]
MODES = [["student.mode=full"], LORA]


@pytest.fixture
def point():
    draws = Draws(3, 0)
    return draws.normal("xt", range(2), (16, 8, 8)), torch.tensor([0.8, 0.3])


def shake(run, role: str, seed: int = 1, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in run.train_state.roles.parameters(role).values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def ask(run, role: str, point) -> torch.Tensor:
    cond = run.encoder.encode(["a ring", "a star"])
    return getattr(run.train_state.roles, role)(*point, cond)


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_all_roles_start_as_the_teacher(mode, make_run, point):
    run = make_run(*mode)
    original = run.backbone.velocity(
        run.train_state.roles.net(TEACHER), *point, run.encoder.encode(["a ring", "a star"])
    )
    for role in (STUDENT, TEACHER, FAKE_TEACHER):
        assert torch.equal(ask(run, role, point), original)
    parameters = [run.train_state.roles.parameters(role) for role in TRAINED]
    assert parameters[0].keys() == parameters[1].keys()
    for name, mine in parameters[0].items():
        assert torch.equal(mine, parameters[1][name]) and mine is not parameters[1][name]
        assert mine.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_roles_do_not_leak_into_each_other(mode, make_run, point):
    run = make_run(*mode)
    teacher = ask(run, TEACHER, point).clone()
    shake(run, STUDENT)
    student = ask(run, STUDENT, point)
    assert torch.equal(ask(run, TEACHER, point), teacher)
    assert torch.equal(ask(run, FAKE_TEACHER, point), teacher)
    assert not torch.allclose(student, teacher)
    assert torch.equal(ask(run, STUDENT, point), student), "asking others changes nothing"


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_gradients_reach_the_asked_role_alone(mode, make_run, point):
    run = make_run(*mode)
    assert not ask(run, TEACHER, point).requires_grad
    for role, other in ((STUDENT, FAKE_TEACHER), (FAKE_TEACHER, STUDENT)):
        answer = ask(run, role, point)
        ask(run, TEACHER, point), ask(run, other, point)  # switching in between must not matter
        with run.train_state.roles.active(role):
            answer.square().mean().backward()
        grads = [p.grad for p in run.train_state.roles.parameters(role).values()]
        assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)
        assert all(p.grad is None for p in run.train_state.roles.parameters(other).values())
        for parameter in run.train_state.roles.parameters(role).values():
            parameter.grad = None


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_checkpointed_activations_give_the_same_gradient(mode, make_run, point):
    found = []
    for flag in ("false", "true"):
        run = make_run(*mode, f"student.gradient_checkpointing={flag}")
        shake(run, STUDENT, seed=1)
        shake(run, FAKE_TEACHER, seed=2)
        answer = ask(run, STUDENT, point)
        ask(run, FAKE_TEACHER, point), ask(run, TEACHER, point)
        with run.train_state.roles.active(STUDENT):
            answer.square().mean().backward()
        parameters = run.train_state.roles.parameters(STUDENT)
        found.append({n: p.grad for n, p in parameters.items() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys() and plain
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, rtol=1e-5, atol=1e-9)


def test_adapters_share_one_network_and_their_start(make_run, point):
    run = make_run(*LORA)
    roles = run.train_state.roles
    assert roles.net(STUDENT) is roles.net(TEACHER) is roles.net(FAKE_TEACHER) is run.backbone.net
    pairs = [roles.parameters(role) for role in TRAINED]
    assert all(not torch.any(p) for n, p in pairs[0].items() if ".lora_B." in n)
    assert all(torch.any(p) for n, p in pairs[0].items() if ".lora_A." in n)
    names = {name.rsplit(".lora_", 1)[0] for name in pairs[0]}
    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2"} <= names


def test_an_adapter_is_right_at_scale_one(make_run, point):
    run = make_run(*LORA)
    shake(run, STUDENT)
    student = ask(run, STUDENT, point)
    merged = copy.deepcopy(run.backbone.net)
    state = run.train_state.roles.state("student")
    with torch.no_grad():
        for name, module in merged.named_modules():
            if f"{name}.lora_A.weight" in state:
                delta = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
                module.base_layer.weight += delta
                module.enable_adapters(False)
    cond = run.encoder.encode(["a ring", "a star"])
    torch.testing.assert_close(
        run.backbone.velocity(merged, *point, cond), student, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_a_saved_student_comes_back(mode, make_run, point):
    run = make_run(*mode)
    shake(run, STUDENT)
    student = ask(run, STUDENT, point).detach()
    recipe = run.recipe
    fresh = models.load(recipe.model.path, **recipe.model.options)
    net = become_student(fresh, recipe.student, run.train_state.roles.state("student"))
    assert net is fresh.net and not any(p.requires_grad for p in net.parameters())
    cond = run.encoder.encode(["a ring", "a star"])
    assert torch.equal(fresh.velocity(net, *point, cond), student)


def test_weights_of_another_model_are_refused(make_run):
    run = make_run(*LORA)
    parameters = run.train_state.roles.parameters(STUDENT)
    state = run.train_state.roles.state("student")
    name = next(iter(state))
    with refuses("mismatch"):
        load_parameters(parameters, {k: v for k, v in state.items() if k != name})
    with refuses("mismatch"):
        load_parameters(parameters, state | {name: torch.zeros(1)})


def test_lora_targets_are_found_or_refused(make_run):
    run = make_run(*LORA, "student.lora.targets=[attn.to_q, attn.to_k]")
    names = adapter_parameters(run.backbone.net, STUDENT)
    assert {name.split(".attn.")[1].split(".")[0] for name in names} == {"to_q", "to_k"}
    with refuses("unknown-name", "student.lora.targets: "):
        make_run(*LORA, "student.lora.targets=[nowhere]")


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_bfloat16_computes_low_and_trains_float32(mode, make_run, point):
    run = make_run(*mode, "model.dtype=bfloat16")
    frozen = [
        p for n, p in run.train_state.roles.net(TEACHER).named_parameters() if "lora" not in n
    ]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    for role in TRAINED:
        assert {p.dtype for p in run.train_state.roles.parameters(role).values()} == {torch.float32}
        answer = ask(run, role, point)
        assert answer.dtype == torch.float32 and answer.isfinite().all()
        with run.train_state.roles.active(role):
            answer.mean().backward()
    torch.testing.assert_close(
        ask(run, STUDENT, point), ask(run, TEACHER, point), atol=0.1, rtol=0.1
    )
