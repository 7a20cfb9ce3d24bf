"""The fused step does the mathematics of the plain one with less work."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.noise import Draws
from fewstep.core.types import Conditioning
from fewstep.train import step
from fewstep.train.fused import lockstep_parts, simulate_to, walk_evaluations, walk_to
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, TRAINED
from fewstep.train.step import Batch, iteration, samples_of

MODES = {"full": ["student.mode=full"], "lora": ["student.mode=lora", "student.lora.rank=4"]}
EVERY = ["student.every=1", "grid.max_steps=6"]


def parts_of(run, size: int = 4, parts: int = 1) -> list[Batch]:
    samples = samples_of(run.algorithm, Draws(0, 0), size, parts=parts)
    return [batch_of(run, size, *each) for each in samples]


def batch_of(run, size: int, own, together) -> Batch:
    prompts = run.order.take(0, size)
    cond = run.encoder.encode([prompts[i] for i in own.tolist()])
    return Batch(cond, run.encoder.null(len(own)), own, together)


def move_apart(run) -> None:
    """Student and fake teacher somewhere else than the teacher, each at a place of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in TRAINED:
            for parameter in run.train_state.roles.parameters(role).values():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def gradients(run, monkeypatch, *, parts: int = 1) -> tuple[dict[str, torch.Tensor], dict]:
    """Both gradients of one iteration, flat, and its metrics; nothing moves."""
    found: dict[str, torch.Tensor] = {}
    roles = run.train_state.roles
    for updater in run.train_state.optimizers.values():

        def keep(losses, number, *, role=updater.role):
            parameters = roles.parameters(role).values()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            found[role] = torch.cat([grad.flatten() for grad in grads]).clone()
            return torch.zeros(())

        monkeypatch.setattr(updater, "update", keep)
    metrics = iteration(run.train_state, parts_of(run, parts=parts), Draws(0, 0), run.algorithm)
    return found, metrics


OTHERS = [(), ("student.gradient_checkpointing=true",), ("fake_teacher.target={x0: 1, final: 1}",)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", OTHERS)
def test_the_gradients_are_those_of_the_plain_step(mode, other, make_run, monkeypatch):
    settings = [*MODES[mode], *EVERY, *other, "fake_teacher.ida_rate=0"]
    ways = {
        "plain": ("plain", True, 1, "null"),
        "fused": ("fused", True, 1, "null"),
        "accumulated": ("fused", True, 2, "null"),
        "accumulated, simulated together": ("fused", True, 2, "64"),
        "site by site": ("fused", False, 1, "null"),
    }
    found = {}
    for name, (kind, together, parts, simulated) in ways.items():
        batch = f"train.batch_teachers={str(together).lower()}"
        run = make_run(*settings, f"train.step={kind}", f"train.simulate_batch={simulated}", batch)
        move_apart(run)
        found[name] = gradients(run, monkeypatch, parts=parts)
    plain, losses = found.pop("plain")
    for name, (fused, metrics) in found.items():
        for role in TRAINED:
            assert plain[role].abs().max() > 0
            cosine = torch.cosine_similarity(plain[role].double(), fused[role].double(), dim=0)
            assert cosine >= 0.99999, (name, role)
            torch.testing.assert_close(fused[role].norm(), plain[role].norm(), rtol=1e-4, atol=0)
        assert metrics.keys() == losses.keys()
        for key, loss in losses.items():
            torch.testing.assert_close(metrics[key], loss, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("objectives", ["[{name: cdm}]", "[{name: isg}, {name: dm}]"])
def test_any_objectives_can_be_fused(objectives, make_run, monkeypatch):
    found = []
    for kind in ("plain", "fused"):
        run = make_run(*EVERY, f"train.step={kind}", f"objectives={objectives}")
        move_apart(run)
        found.append(gradients(run, monkeypatch)[0][STUDENT])
    assert torch.cosine_similarity(*found, dim=0) >= 0.99999


# ------------------------------------------------------------------------------------------ work


def spied(run, monkeypatch) -> list[tuple[str, int, bool]]:
    """Every question to come: who, how many samples, and whether a graph is built."""
    asked: list[tuple[str, int, bool]] = []
    roles = run.train_state.roles
    real = roles.velocity

    def spy(role, xt, sigma, cond):
        velocity = real(role, xt, sigma, cond)
        asked.append((role, len(xt), velocity.requires_grad))
        return velocity

    monkeypatch.setattr(roles, "velocity", spy)
    return asked


def walked(run, number: int, size: int) -> int:
    """Evaluations on the way to the anchors of all samples, theirs not included."""
    steps = len(run.algorithm.grid(Draws(0, number).shared("grid")))
    return int(Draws(0, number).integers("anchor", torch.arange(size), steps).sum())


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (2, 3), (8, 16)])
def test_parts_in_lockstep_hold_every_sample_once_and_keep_the_saving(processes, parts):
    """Of 16 steps about 8.5 evaluations a sample, as if no process waited for another."""
    spent, size, steps = 0, 128, 16
    index = torch.randint(steps, (size,), generator=torch.Generator().manual_seed(0))
    found = lockstep_parts(index, processes, parts)
    assert sorted(torch.cat([part.flatten() for part in found]).tolist()) == list(range(size))
    for part in found:
        assert len(part) == processes
        spent += sum(walk_evaluations(index[own], int(index[part].max()) + 1) for own in part)
    alone = int(index.sum()) + size
    assert alone <= spent <= 1.05 * alone


def test_every_process_calls_the_networks_equally_often(make_run, monkeypatch):
    """What two processes with a shared network would do, one after the other in this one."""
    run, size, parts = make_run("grid.max_steps=6", "student.every=5"), 8, 2
    asked, draws = spied(run, monkeypatch), Draws(0, 2)
    calls, indices = [], []
    for rank in range(2):
        samples = samples_of(
            run.algorithm, draws, size, parts=parts, rank=rank, processes=2, joint=True
        )
        indices += [own for own, _ in samples]
        asked.clear()
        pieces = [batch_of(run, size, *each) for each in samples]
        iteration(run.train_state, pieces, draws, run.algorithm)
        calls.append([role for role, _, _ in asked])
    assert calls[0] == calls[1] and STUDENT in calls[0]
    assert sorted(torch.cat(indices).tolist()) == list(range(size))


@pytest.mark.parametrize("parts", [1, 2])
def test_no_network_is_asked_twice_for_the_same(parts, make_run, monkeypatch):
    run, size = make_run("student.every=2", "grid.max_steps=6"), 4
    asked, batch = spied(run, monkeypatch), parts_of(run, size, parts)

    iteration(run.train_state, batch, Draws(0, 0), run.algorithm)
    assert sum(n for role, n, _ in asked if role == STUDENT) == walked(run, 0, size) + size
    assert [graph for role, _, graph in asked if role == STUDENT].count(True) == 0

    asked.clear()
    iteration(run.train_state, batch, Draws(0, 1), run.algorithm)
    student = [(n, graph) for role, n, graph in asked if role == STUDENT]
    again = 0 if parts == 1 else size  # the answers at the anchors come once more, with a graph
    assert sum(n for n, graph in student if graph) == 2 * size
    assert sum(n for n, graph in student if not graph) == walked(run, 1, size) + again
    teachers = [(role, n) for role, n, graph in asked if not graph and role != STUDENT]
    share = size // parts
    assert teachers == [(TEACHER, 4 * share), (FAKE_TEACHER, 2 * share)] * parts


def test_a_graph_is_kept_only_where_it_is_used(make_run, monkeypatch):
    starts, real = [], step.find_anchor

    def spy(*args, **kwargs):
        starts.append(real(*args, **kwargs))
        return starts[-1]

    monkeypatch.setattr(step, "find_anchor", spy)

    def kept(*overrides, number=1, parts=1):
        run = make_run("student.every=2", "grid.max_steps=3", *overrides)
        starts.clear()
        iteration(run.train_state, parts_of(run, parts=parts), Draws(0, number), run.algorithm)
        assert not any(each.anchor.velocity.requires_grad for each in starts)
        return any(each.student_velocity is not None for each in starts)

    assert kept()
    assert not kept(number=0)
    assert not kept(parts=2)
    assert not kept("train.step=plain")
    assert not kept("train.batch_teachers=false")
    assert not kept("fake_teacher.target=final")
    assert not kept("fake_teacher.target={x0: 1, final: 2}")
    assert not kept("objectives=[{name: cdm}]")


def test_nobody_waits_for_the_device_but_the_check_before_an_update(make_run):
    """Host synchronisation reads a float or a truth value; sample numbers live on the host."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "aten::_local_scalar_dense":
                self.count += args[0].dtype in (torch.float32, torch.bool)
            return func(*args, **(kwargs or {}))

    run = make_run("student.every=1", "fake_teacher.updates=2")
    batch = parts_of(run)
    with Reads() as reads:
        iteration(run.train_state, batch, Draws(0, 0), run.algorithm)
    assert reads.count == 3  # two updates of the fake teacher, one of the student


@pytest.mark.parametrize("calls", [0, 3, 5])
def test_one_sample_walks_on_to_keep_up_with_others(calls):
    index, sizes = torch.tensor([1, 0, 2, 0]), []
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    cond = Conditioning({"text": torch.zeros(4, 1)})
    grid = torch.linspace(1, 0, 7)

    def velocity(xt, sigma, cond):
        sizes.append(len(xt))
        return torch.sin(xt) * sigma[:, None]

    alone, *_ = walk_to(velocity, noise, grid, cond, index=index)
    sizes.clear()
    xt, *_ = walk_to(velocity, noise, grid, cond, index=index, calls=calls)
    assert torch.equal(xt, alone)
    assert sizes == [2, 1, 1, 1, 1][: max(calls, 2)]
    sizes.clear()
    simulate_to(velocity, noise, grid, cond, index=index, calls=calls)
    assert len(sizes) == max(calls, 3)


def test_nobody_stays_behind(cond):
    """With `calls`, the network is asked as often as elsewhere, and the anchors are the same."""
    noise, sigmas = torch.randn(5, 2, 3), torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
    index, asked = torch.tensor([0, 1, 0, 1, 0]), []

    def velocity(xt, sigma, cond):
        asked.append(len(xt))
        return xt * sigma[:, None, None] + cond.tensors["text"].sum(1)[:, None, None]

    plain, _ = simulate_to(velocity, noise, sigmas, cond, index=index)
    assert len(asked) == 2
    kept, _ = simulate_to(velocity, noise, sigmas, cond, index=index, calls=4)
    assert len(asked) == 2 + 4
    for name in ("xt", "velocity", "x0", "sigma", "sigma_next"):
        assert torch.equal(getattr(plain, name), getattr(kept, name))


# --------------------------------------------------------------------------------------- compile


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled_blocks_say_the_same(mode, make_run, monkeypatch):
    """Order: adapters, checkpointing, compile; the names of the parameters stay."""
    compiled, compile_module = [], nn.Module.compile

    def spy(module, *args, **settings):
        compiled.append(module)
        compile_module(module, *args, **settings)

    monkeypatch.setattr(nn.Module, "compile", spy)
    found, names = [], []
    for compile_ in ("false", "true"):
        settings = ["student.gradient_checkpointing=true", f"student.compile={compile_}"]
        run = make_run(*MODES[mode], *EVERY, *settings)
        move_apart(run)
        names.append(list(run.train_state.roles.parameters(STUDENT)))
        found.append(gradients(run, monkeypatch))
        blocks = run.backbone.blocks(run.train_state.roles.net(STUDENT))
        assert [block in compiled for block in blocks] == [compile_ == "true"] * len(blocks)
    assert names[0] == names[1]
    for role in TRAINED:
        assert torch.cosine_similarity(found[0][0][role], found[1][0][role], dim=0) >= 0.9999


def test_parts_that_are_simulated_together_take_fewer_calls(make_run, monkeypatch):
    """As many calls as one part would, and as many evaluations."""
    found = {}
    for most in ("null", "64"):
        run = make_run("student.every=2", f"train.simulate_batch={most}")
        asked = spied(run, monkeypatch)
        gradients(run, monkeypatch, parts=4)
        walk = [size for role, size, graph in asked if role == STUDENT and not graph]
        found[most] = len(walk), sum(walk)
    assert found["64"][0] < found["null"][0]
    assert found["64"][1] == found["null"][1]
