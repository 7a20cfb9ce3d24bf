"""One iteration: what it evaluates, what it moves, and what it does not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.core.flow import x0_from_velocity
from fewstep.core.noise import Draws
from fewstep.core.schedules import with_shift
from fewstep.core.solver import simulate
from fewstep.core.types import Conditioning
from fewstep.train import NonFiniteError, step
from fewstep.train.fused import simulate_to
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, TRAINED
from fewstep.train.step import Batch, iteration
from refusals import names_in, refuses

MODES = [["student.mode=full"], ["student.mode=lora", "student.lora.rank=4"]]


def parts_of(run, size: int, parts: int) -> list[Batch]:
    prompts = run.order.take(0, size)
    whole = run.encoder.encode(prompts)
    pieces = torch.arange(size).tensor_split(parts)
    return [Batch(whole.select(rows), run.encoder.null(len(rows)), rows) for rows in pieces]


def advance(run, steps: int, *, parts: int = 1, size: int = 3) -> list[dict]:
    batch = parts_of(run, size, parts)
    return [iteration(run.train_state, batch, Draws(0, i), run.algorithm) for i in range(steps)]


def snapshot(run, role: str) -> dict[str, torch.Tensor]:
    parameters = run.train_state.roles.parameters(role)
    return {name: p.detach().clone() for name, p in parameters.items()}


def moved(run, role: str, before: dict[str, torch.Tensor]) -> int:
    after = snapshot(run, role)
    return sum(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("mode", MODES, ids=["full", "lora"])
def test_only_student_and_fake_teacher_move(mode, make_run):
    run = make_run(*mode)
    teacher = {name: p.clone() for name, p in run.backbone.net.named_parameters()}
    xt = torch.randn(2, 16, 8, 8)
    sigma, cond = torch.tensor([0.9, 0.4]), run.encoder.encode(["a ring", "a star"])
    original = run.train_state.roles.teacher(xt, sigma, cond)
    before = {role: snapshot(run, role) for role in TRAINED}

    advance(run, 1)
    assert moved(run, STUDENT, before[STUDENT]) == 0, "the student moves every 2nd iteration only"
    assert moved(run, FAKE_TEACHER, before[FAKE_TEACHER]) > 0

    advance(run, 2)
    assert moved(run, STUDENT, before[STUDENT]) > 0
    assert torch.equal(run.train_state.roles.teacher(xt, sigma, cond), original)
    frozen = {n: p for n, p in run.backbone.net.named_parameters() if ".lora_" not in n}
    assert frozen and all(torch.equal(p, teacher[name]) for name, p in frozen.items())
    if run.recipe.student.mode == "full":
        assert not any(p.requires_grad for p in run.backbone.net.parameters())


@pytest.mark.parametrize(("mode", "parts"), [(MODES[0], 2), (MODES[0], 5), (MODES[1], 3)])
def test_accumulated_gradients_are_the_big_batch_s(mode, parts, make_run, monkeypatch):
    found: dict[int, dict[str, torch.Tensor]] = {}
    for count in (1, parts):
        run = make_run(*mode, "student.every=1")
        for updater in run.train_state.optimizers.values():
            grads = found.setdefault(count, {})
            parameters = run.train_state.roles.parameters(updater.role)

            def spy(losses, step, *, role=updater.role, grads=grads, parameters=parameters):
                grads |= {
                    f"{role}/{n}": p.grad.clone()
                    for n, p in parameters.items()
                    if p.grad is not None
                }
                return torch.zeros(())

            monkeypatch.setattr(updater, "update", spy)
        advance(run, 1, parts=count, size=5)
    assert found[1].keys() == found[parts].keys()
    for name, whole in found[1].items():
        scale = whole.abs().max() + 1e-7
        torch.testing.assert_close(
            found[parts][name], whole, rtol=0, atol=1e-5 * float(scale) + 1e-9
        )


def test_metrics_do_not_depend_on_the_split(make_run):
    one, many = make_run(), make_run()
    for a, b in zip(advance(one, 2), advance(many, 2, parts=3), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # After the first update weights differ in the last bits, and DM starts from nothing.
            torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=1e-5, msg=name)


def test_updates_go_through_the_published_order(make_run, monkeypatch):
    run = make_run("student.every=2", "fake_teacher.updates=2")
    calls = []
    for name in ("student", "fake_teacher"):
        updater = run.train_state.optimizers[name]
        real = updater.update
        monkeypatch.setattr(
            updater, "update", lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    real_pull, ema = step.mix_weights, run.train_state.ema
    monkeypatch.setattr(step, "mix_weights", lambda *a: (calls.append("pull"), real_pull(*a)))
    real_ema = ema.update
    monkeypatch.setattr(ema, "update", lambda: (calls.append("ema"), real_ema()))
    advance(run, 2)
    assert calls == ["fake_teacher", "pull"] * 4 + ["student", "ema"]


def test_calls_equal_evaluations(make_run, monkeypatch):
    """The student alone is simulated, conditionally; then each term costs what the method says."""
    run = make_run("fake_teacher.updates=2", "student.every=1", "train.step=plain")
    roles, size = run.train_state.roles, 3
    asked: list[tuple[str, bool]] = []
    real, null = roles.velocity, run.encoder.null(1).tensors["pooled"]

    def spy(role, xt, sigma, cond):
        unconditional = torch.equal(cond.tensors["pooled"][:1], null)
        asked.append((role, unconditional))
        return real(role, xt, sigma, cond)

    monkeypatch.setattr(roles, "velocity", spy)
    (metrics,) = advance(run, 1, size=size)
    steps = int(metrics["grid/steps"])
    assert asked.count((STUDENT, False)) == steps + len(run.algorithm.objectives)
    assert asked.count((STUDENT, True)) == 0
    assert asked.count((FAKE_TEACHER, False)) == 2 + 2  # two updates; DM and CDM
    assert asked.count((TEACHER, False)) == 3 and asked.count((TEACHER, True)) == 1
    assert roles.evaluations == size * len(asked)


def test_the_grid_is_shared_and_the_values_are_not(make_run):
    run = make_run("grid.max_steps=28")
    grids = [run.algorithm.grid(Draws(0, i).shared("grid")) for i in range(40)]
    assert torch.equal(grids[0], run.algorithm.grid(Draws(0, 0, "cpu").shared("grid")))
    assert len({len(grid) for grid in grids}) > 10
    noise = Draws(0, 0).normal("simulate/eps", torch.arange(4), (2,))
    assert torch.equal(noise[2:], Draws(0, 0).normal("simulate/eps", torch.arange(2, 4), (2,)))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_samples_may_leave_after_their_anchor(steps):
    generator = torch.Generator().manual_seed(steps)
    noise = torch.randn(6, 2, 3, generator=generator)
    cond = Conditioning({"text": torch.randn(6, 1, 1, generator=generator)})
    index = torch.randint(steps, (6,), generator=generator)
    grid = torch.cat([torch.linspace(1, 0.2, steps), torch.zeros(1)])
    seen = []

    def velocity(xt, sigma, cond):
        seen.append(len(xt))
        return torch.sin(xt + cond.tensors["text"]) * (1 + sigma[:, None, None])

    whole = simulate(velocity, noise, grid, cond).pick(index)
    seen.clear()
    early, predicted = simulate_to(velocity, noise, grid, cond, index=index)
    assert torch.equal(predicted, early.velocity)
    assert sum(seen) == int((index + 1).sum())
    for field in ("xt", "sigma", "sigma_next", "velocity", "x0"):
        torch.testing.assert_close(getattr(early, field), getattr(whole, field))
    torch.testing.assert_close(early.x0, x0_from_velocity(early.xt, early.velocity, early.sigma))


def test_the_final_target_is_the_end_of_the_simulation(make_run, monkeypatch):
    run, seen = make_run("fake_teacher.target=final"), []
    real = step.update_loss

    def spy(velocity, anchor, **settings):
        seen.append(anchor)
        return real(velocity, anchor, **settings)

    monkeypatch.setattr(step, "update_loss", spy)
    (batch,) = parts_of(run, 3, 1)
    draws = Draws(0, 0)
    noise = draws.normal("simulate/eps", batch.indices, run.algorithm.latent_shape)
    sigmas = with_shift(run.algorithm.grid(draws.shared("grid")), run.algorithm.shift)
    final = simulate(run.train_state.roles.student, noise, sigmas, batch.cond).final
    advance(run, 1)
    torch.testing.assert_close(seen[0].final, final)


# ------------------------------------------------------------------------------------ non-finite


def test_a_wrong_loss_stops_the_student_before_it_moves(make_run, monkeypatch):
    run = make_run("student.every=1")
    before, real = snapshot(run, STUDENT), step.evaluate

    def poisoned(*args, **kwargs):
        terms = real(*args, **kwargs)
        wrong = {"dm": float("nan")}
        return [replace(term, loss=term.loss * wrong.get(term.name, 1.0)) for term in terms]

    monkeypatch.setattr(step, "evaluate", poisoned)
    with refuses("non-finite", "step 1: ", NonFiniteError) as caught:
        advance(run, 1)
    assert {"dm", STUDENT, next(iter(before))} <= names_in(caught.value)
    assert not {"ca", "cdm", FAKE_TEACHER} & names_in(caught.value)
    assert moved(run, STUDENT, before) == 0
    assert run.train_state.optimizers["student"].updates == 0 and run.train_state.ema.updates == 0
    assert not run.train_state.optimizers["student"].tensors()


def test_a_wrong_gradient_names_its_parameters(make_run):
    run = make_run("student.every=1")
    name, parameter = next(iter(run.train_state.roles.parameters(FAKE_TEACHER).items()))
    parameter.register_hook(lambda grad: grad * float("inf"))
    before = snapshot(run, FAKE_TEACHER)
    with refuses("non-finite", "step 1: ", NonFiniteError) as caught:
        advance(run, 1)
    assert {FAKE_TEACHER, name} <= names_in(caught.value)
    assert not names_in(caught.value) & (before.keys() - {name})
    assert moved(run, FAKE_TEACHER, before) == 0


def test_a_student_that_blew_up_is_not_repaired(make_run):
    run = make_run()
    with torch.no_grad():
        next(iter(run.train_state.roles.parameters(STUDENT).values())).fill_(float("nan"))
    before = snapshot(run, STUDENT)
    with refuses("non-finite", "step 1: ", NonFiniteError) as caught:
        advance(run, 1)
    assert FAKE_TEACHER in names_in(caught.value), "the first loss that is taken"
    assert moved(run, STUDENT, before) == 1, "NaN differs from itself"
