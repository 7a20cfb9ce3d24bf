"""Objectives of another package, added by entry points, in real runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import golden
from fewstep import objectives
from fewstep.config import Recipe
from fewstep.core.flow import x0_from_velocity
from fewstep.core.noise import Draws
from fewstep.core.types import Anchor
from fewstep.objectives import AnchorBatch, Query, drive
from fewstep.train import distill
from fewstep.train.checkpoint import store
from plugin import make_plugin

SOURCE = Path(__file__).parents[1] / "plugins" / "extra_objectives.py"
NAMES = {"adversarial": "Adversarial", "score_identity": "ScoreIdentity", "tangent": "Tangent"}
INDICES = torch.arange(5)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """Where the other package is installed."""
    points = {name: f"extra_objectives:{cls}" for name, cls in NAMES.items()}
    return make_plugin(
        tmp_path_factory.mktemp("site"),
        {"fewstep.objectives": points},
        {"extra_objectives.py": SOURCE.read_text(encoding="utf-8")},
        name="extra_objectives",
    )


@pytest.fixture
def installed(plugin, monkeypatch) -> Path:
    """The package on sys.path, of this process and of those it starts."""
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    return plugin


def batch(anchor, cond, null) -> AnchorBatch:
    return AnchorBatch(anchor, cond, null, Draws(0, 0), INDICES)


def ask(query: Query, networks):
    def generator():
        (prediction,) = yield [query]
        return prediction

    return drive([generator()], networks)[0]


# ---------------------------------------------------------------------------------- what is asked


def test_a_jacobian_vector_product_is_the_difference_quotient(roles, cond):
    roles.teacher_net.double()
    cond = type(cond)({name: each.double() for name, each in cond.tensors.items()})
    rng = torch.Generator().manual_seed(0)
    xt, dxt = (torch.randn(5, 2, 3, generator=rng).double() for _ in range(2))
    sigma, dsigma = torch.rand(5, generator=rng).double(), torch.randn(5, generator=rng).double()
    moving = ask(Query("teacher", xt, sigma, cond, tangent=(dxt, dsigma)), roles)
    step = 1e-6
    ahead, behind = (
        roles.teacher_net(xt + s * dxt, sigma + s * dsigma, cond) for s in (step, -step)
    )
    torch.testing.assert_close(moving.jvp, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    assert torch.equal(moving.velocity, roles.teacher_net(xt, sigma, cond))


def test_a_gradient_flows_through_a_teacher_only_where_it_is_asked_for(roles, cond):
    rng = torch.Generator().manual_seed(0)
    xt, sigma = torch.randn(5, 2, 3, generator=rng).requires_grad_(), torch.full((5,), 0.5)
    through = ask(Query("teacher", xt, sigma, cond, grad=True), roles)
    (gradient,) = torch.autograd.grad(through.x0.square().sum(), xt)
    direct = x0_from_velocity(xt, roles.teacher_net(xt, sigma, cond), sigma)
    (expected,) = torch.autograd.grad(direct.square().sum(), xt)
    torch.testing.assert_close(gradient, expected)
    assert not ask(Query("teacher", xt, sigma, cond), roles).x0.requires_grad


@pytest.mark.parametrize("batched", [False, True])
def test_outputs_of_blocks_come_with_the_prediction(batched, roles, cond):
    rng = torch.Generator().manual_seed(0)
    points = [(torch.randn(n, 2, 3, generator=rng), torch.rand(n, generator=rng)) for n in (2, 3)]

    def generator():
        return (
            yield [
                Query("teacher", xt, sigma, cond.select(slice(len(xt))), blocks=(1, 0))
                for xt, sigma in points
            ]
        )

    (predictions,) = drive([generator()], roles, batched=batched)
    for (xt, _), each in zip(points, predictions, strict=True):
        outer, inner = (features[0] for features in each.features)
        assert inner.shape == (len(xt), 16)
        torch.testing.assert_close(outer.view_as(xt), each.velocity)


def test_a_loss_through_both_teachers_reaches_the_student(installed, roles, anchor, cond, null):
    (term,) = objectives.evaluate(
        [objectives.build("score_identity")], roles, batch(anchor, cond, null)
    )
    graph = torch.autograd.grad(term.loss.sum(), list(roles.student_net.parameters()))
    assert all(gradient.any() for gradient in graph)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_recomputed_activations_are_those_of_the_network_that_was_queried(
    mode, installed, make_run
):
    """With one network for all roles, a block is recomputed with the adapters of its query."""
    gradients = []
    for recompute in ("false", "true"):
        run = make_run(
            f"student.mode={mode}",
            f"student.gradient_checkpointing={recompute}",
            "objectives=[{name: score_identity}, {name: dm}]",
        )
        roles, rng = run.train_state.roles, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for role in ("student", "fake_teacher"):
                for parameter in roles.parameters(role).values():
                    parameter += 0.02 * torch.randn(parameter.shape, generator=rng)
        xt = torch.randn(2, *run.algorithm.latent_shape, generator=rng)
        sigma = torch.tensor([0.8, 0.4])
        anchor = Anchor(xt, sigma, sigma / 2, velocity=xt, x0=xt, final=xt)
        cond, null = run.encoder.encode(["a ring", "a star"]), run.encoder.null(2)
        where = AnchorBatch(anchor, cond, null, Draws(0, 0), torch.arange(2))
        terms = objectives.evaluate(run.algorithm.objectives, roles, where, batched=True)
        roles.backward("student", torch.stack([term.loss.sum() for term in terms]).sum())
        grads = [p.grad for p in roles.parameters("student").values() if p.grad is not None]
        gradients.append(torch.cat([grad.flatten() for grad in grads]))
    plain, recomputed = gradients
    assert plain.abs().max() > 0
    torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


# -------------------------------------------------------------------------------------- real runs


STEPS = 2


def recipe(steps: int = STEPS, **changes) -> dict:
    base = json.loads(json.dumps(golden.FULL)) | {
        "objectives": [{"name": "dm"}, *({"name": name, "weight": 0.1} for name in NAMES)],
        "fake_teacher": {"optimizer": {"lr": 1e-4}},
        "checkpoint": {"every": 1, "keep_last": 2, "keep_best": 0},
    }
    base["train"] = {"steps": steps, "warmup": 0, "seed": 3, "device": "cpu"}
    base["data"]["batch_size"], base["grid"]["max_steps"] = 2, 2
    for section in ("preview", "health"):
        base[section] |= {"every": STEPS, "count": 1}
    return base | changes


def run(folder: Path, steps: int = STEPS, **settings) -> Path:
    console = Console(file=io.StringIO())
    return distill(Recipe.from_values(recipe(steps)), folder, console=console, **settings)


@pytest.fixture(scope="module")
def whole(plugin, tmp_path_factory) -> Path:
    """Folder of a run that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(plugin)
        return run(tmp_path_factory.mktemp("runs") / "whole")


def tensors(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    groups = store.load(folder / "checkpoints" / f"step-{step:08d}").groups
    return {
        f"{group}/{key}": each for group, named in groups.items() for key, each in named.items()
    }


def test_a_discriminator_is_trained_saved_and_resumed_bit_for_bit(installed, whole, tmp_path):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/adversarial", "loss/discriminator", "grad_norm/discriminator"} <= lines[-1].keys()
    assert {"loss/score_identity", "loss/tangent", "lr/discriminator"} <= lines[-1].keys()
    before, after = tensors(whole, 1), tensors(whole)
    weight, calls = "discriminator/out.weight", "discriminator/calls"
    assert not torch.equal(before[weight], after[weight])
    assert after[calls] > before[calls], "buffers are part of a network's state"
    assert any(key.startswith("optimizers/discriminator/") for key in after)

    run(tmp_path / "run", steps=1)
    resumed = tensors(run(tmp_path / "run", resume=True))
    assert resumed.keys() == after.keys()
    assert [key for key, tensor in after.items() if not torch.equal(resumed[key], tensor)] == []


@pytest.mark.slow
def test_two_processes_that_split_every_network_give_what_one_gives(installed, whole, tmp_path):
    golden.launch(recipe(parallel={"shard": "full"}), tmp_path / "run", 2)
    one, two = tensors(whole), tensors(tmp_path / "run")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if not key.startswith("optimizers"):
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=5e-4, msg=key)
