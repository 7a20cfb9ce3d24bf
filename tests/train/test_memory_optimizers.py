"""Moments in few bits, bfloat16 weights, what lives on the host: right, and resumed bit for bit."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from fewstep.config import FakeTeacherOptimizerRecipe, StudentOptimizerRecipe
from fewstep.core.stochastic_rounding import stochastic_round
from fewstep.objectives.fake_teacher import mix_weights
from fewstep.train import distill
from fewstep.train.memory.low_memory_adamw import KINDS
from fewstep.train.optim import Ema, LRSchedule, Updater

LEAN = [name for name in KINDS if name != "adamw"]
LOSS = {"dm": torch.tensor(1.0)}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(dtype=torch.float32) -> dict[str, nn.Parameter]:
    generator = rng()
    shapes = {"large": (64, 128), "small": (7,), "odd": (67, 67)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def train(params, updater, updates) -> None:
    for number in updates:
        generator = rng(100 + number)
        for each in params.values():
            noise = torch.randn(each.shape, generator=generator)
            each.grad = (each.detach() + 0.3 * noise).to(each.dtype) / 50
        updater.update(LOSS, step=number)


# ------------------------------------------------------------------------------------ rounding


def test_rounding_at_random_is_right_on_average():
    x = torch.full((20000,), 1.0 + 1 / 1024)  # an eighth of the way to bfloat16's next number
    rounded = stochastic_round(x, rng())
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert float(rounded.mean()) == pytest.approx(float(x[0]), abs=1e-4)
    exact = torch.tensor([0.0, -1.5, 3.0, -0.0078125])
    assert torch.equal(stochastic_round(exact, rng()), exact)


# ----------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", LEAN)
def test_it_goes_where_adamw_goes(name):
    ends, start = {}, parameters()
    for each in ("adamw", name):
        params = parameters()
        updater = Updater("student", params, StudentOptimizerRecipe(name=each, lr=1e-2))
        train(params, updater, range(30))
        ends[each] = params
    for key, wanted in ends["adamw"].items():
        way = float((wanted - start[key]).detach().norm())
        tolerance = {"adamw8bit": 0.03, "adamwfp8": 0.08}[name]
        assert float((ends[name][key] - wanted).detach().norm()) < tolerance * way, key
    for key in ("small", "odd"):  # of odd sizes moments are float32
        torch.testing.assert_close(ends[name][key], ends["adamw"][key])


@pytest.mark.parametrize(("name", "most"), [("adamw8bit", 2.1), ("adamwfp8", 2.1)])
def test_moments_are_small(name, most):
    params = {"large": parameters()["large"]}
    updater = Updater("student", params, StudentOptimizerRecipe(name=name))
    train(params, updater, range(1))
    assert sum(each.nbytes for each in updater.tensors().values()) < most * 64 * 128


@pytest.mark.parametrize(
    ("name", "dtype", "on_host"),
    [
        ("adamw", torch.float32, True),
        *((name, torch.float32, False) for name in KINDS),
        *((name, torch.bfloat16, False) for name in KINDS),
    ],
)
def test_a_loaded_optimizer_goes_on_bitwise(name, dtype, on_host):
    ways = []
    for interrupted in (False, True):
        params = parameters(dtype)
        recipe = FakeTeacherOptimizerRecipe(name=name, lr=1e-2)

        def fresh(params=params, recipe=recipe):
            return Updater(
                "fake_teacher", params, recipe, lr_schedule=LRSchedule(3), on_host=on_host, seed=5
            )

        updater = fresh()
        train(params, updater, range(2))
        if interrupted:
            saved = {key: tensor.clone() for key, tensor in updater.tensors().items()}
            updater = fresh()
            updater.load({**saved, "student/exp_avg/small": torch.zeros(7)}, updates=2)
        train(params, updater, range(2, 4))
        ways.append({**params, **updater.tensors()})
    assert ways[0].keys() == ways[1].keys()
    for key, tensor in ways[0].items():
        assert torch.equal(tensor, ways[1][key]), key


def test_moments_on_the_host_change_nothing():
    ends = []
    for on_host in (False, True):
        params = parameters()
        recipe = StudentOptimizerRecipe(lr=1e-2)
        updater = Updater("student", params, recipe, lr_schedule=LRSchedule(2), on_host=on_host)
        train(params, updater, range(4))
        ends.append({**params, **updater.tensors()})
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), key


def test_low_weights_learn_what_plain_rounding_would_lose():
    """A rate of a thousandth of a bfloat16 step still moves the mean of many weights."""
    params = {"w": nn.Parameter(torch.ones(64, 128, dtype=torch.bfloat16))}
    recipe = StudentOptimizerRecipe(lr=1e-5, weight_decay=0.0)
    updater = Updater("student", params, recipe)
    for number in range(50):
        params["w"].grad = torch.ones_like(params["w"])
        updater.update(LOSS, step=number)
    assert params["w"].dtype == torch.bfloat16
    assert float(params["w"].detach().float().mean()) == pytest.approx(1 - 50e-5, abs=1e-4)


def test_low_weights_are_pulled_on_average():
    fake, student = torch.ones(40000).bfloat16(), torch.zeros(40000).bfloat16()
    for number in range(20):
        mix_weights([fake], [student], 0.001, rng(number))
    assert float(fake.float().mean()) == pytest.approx(0.999**20, abs=2e-3)
    assert float(fake.float().mean()) < 0.99


# ------------------------------------------------------------------------------------- the mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_on_the_host_is_the_same_mean(dtype):
    params = parameters(dtype)
    means = [Ema(params), Ema(params, on_host=True)]
    for number in range(3):
        with torch.no_grad():
            for each in params.values():
                each += torch.randn(each.shape, generator=rng(number)).to(dtype)
        for mean in means:
            mean.update()
    own = {name: p.detach().clone() for name, p in params.items()}
    for mean in means:
        kept = {name: weight.clone() for name, weight in mean.weights.items()}
        assert {weight.dtype for weight in kept.values()} == {torch.float32}
        assert all(torch.equal(kept[name], means[0].weights[name]) for name in kept)
        with mean.applied():
            assert all(torch.equal(p, kept[name].to(dtype)) for name, p in params.items())
        assert all(torch.equal(p, own[name]) for name, p in params.items())
        assert all(torch.equal(mean.weights[name], weight) for name, weight in kept.items())


# ----------------------------------------------------------------------------------- whole runs

SMALL = ["preview.every=4", "health.every=4", "train.steps=4", "student.every=1"]
LOW = ["model.dtype=bfloat16", "memory.trained_dtype=bfloat16"]


def run_of(make_recipe, folder, *overrides, steps=4, resume=False):
    console = Console(file=io.StringIO(), width=200)
    recipe = make_recipe(*SMALL, *overrides, f"train.steps={steps}")
    return distill(recipe, folder, resume=resume, console=console)


@pytest.mark.parametrize(
    "overrides",
    [
        ["student.optimizer.name=adamw8bit", "fake_teacher.optimizer.name=adamwfp8"],
        ["student.optimizer.name=adamwfp8", *LOW],
    ],
    ids=["few bits", "low weights"],
)
def test_a_run_is_resumed_bitwise(overrides, make_recipe, tmp_path, same_end):
    whole = run_of(make_recipe, tmp_path / "whole", *overrides)
    halves = tmp_path / "halves"
    run_of(make_recipe, halves, *overrides, steps=2)
    run_of(make_recipe, halves, *overrides, steps=4, resume=True)
    same_weights(whole, halves)


def test_a_run_is_the_same_with_moments_mean_and_vae_elsewhere(make_recipe, tmp_path):
    plain = run_of(make_recipe, tmp_path / "plain")
    away = [f"memory.offload_{each}=true" for each in ("optimizer", "ema", "vae")]
    same_weights(plain, run_of(make_recipe, tmp_path / "away", *away))
    picture = "previews/step-00000004.png"
    assert (plain / picture).read_bytes() == (tmp_path / "away" / picture).read_bytes()


def same_weights(one, other) -> None:
    from fewstep.train.checkpoint.store import load

    a, b = (load(each / "checkpoints" / "step-00000004").groups for each in (one, other))
    assert a.keys() == b.keys()
    for group, tensors in a.items():
        assert tensors.keys() == b[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b[group][name]), f"{group}: {name}"
