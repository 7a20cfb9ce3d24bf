"""Optimizers and the running mean, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.config import FakeTeacherOptimizerRecipe, StudentOptimizerRecipe
from fewstep.objectives.fake_teacher import mix_weights
from fewstep.train.optim import Ema, LRSchedule, Updater


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in {"a.weight": (3, 2), "a.bias": (3,), "b": (4,)}.items()
    }


def give_gradients(params: dict[str, nn.Parameter], scale: float = 1.0, seed: int = 9) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params.values():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


LOSS = {"dm": torch.tensor(1.0)}


def test_the_rate_rises_stays_and_falls():
    recipe = StudentOptimizerRecipe(lr=1.0)
    lr_schedule = LRSchedule(warmup=4, cooldown=0.25, steps=8)
    updater = Updater("student", parameters(), recipe, lr_schedule=lr_schedule)
    rates = []
    for step in range(1, 10):
        rates.append(updater.lr_at(step))
        updater.updates += 1
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    constant = Updater("student", parameters(), recipe)
    assert constant.lr_at(1) == constant.lr_at(10_000) == 1.0


def test_the_rate_that_falls_is_the_one_of_the_update():
    mine = parameters()
    lr_schedule = LRSchedule(cooldown=1.0, steps=4)
    updater = Updater(
        "student", mine, StudentOptimizerRecipe(lr=1.0, weight_decay=0.0), lr_schedule=lr_schedule
    )
    moved = []
    for step in (1, 2, 4):
        before = {name: p.detach().clone() for name, p in mine.items()}
        give_gradients(mine, 1.0, seed=0)
        updater.update(LOSS, step=step)
        moved.append(max((mine[name] - before[name]).abs().max() for name in mine).item())
    # Equal gradients: every update of Adam is as long as its rate.
    assert moved == pytest.approx([1.0, 0.75, 0.25], rel=1e-3)


def test_an_update_is_clipped_adamw():
    mine, reference = parameters(), parameters()
    recipe = StudentOptimizerRecipe(lr=1e-2, weight_decay=0.1)
    updater = Updater("student", mine, recipe)
    adamw = torch.optim.AdamW(reference.values(), lr=1e-2, weight_decay=0.1)
    for number, scale in enumerate((5.0, 0.01, 3.0)):
        give_gradients(mine, scale, seed=number)
        give_gradients(reference, scale, seed=number)
        norm = updater.update(LOSS, step=number)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(reference.values(), 1.0))
        adamw.step()
        for name in mine:
            torch.testing.assert_close(mine[name], reference[name])
    assert all(p.grad is None for p in mine.values())


def test_parameters_without_a_gradient_are_left_alone():
    params = parameters()
    before = params["b"].detach().clone()
    updater = Updater("student", params, StudentOptimizerRecipe())
    give_gradients({name: p for name, p in params.items() if name != "b"})
    updater.update(LOSS, step=0)
    assert torch.equal(params["b"], before)
    fresh = Updater("student", params, StudentOptimizerRecipe())
    fresh.load(updater.tensors(), 1)
    assert fresh.tensors().keys() == updater.tensors().keys()


def test_a_loaded_optimizer_goes_on_bitwise():
    ways = []
    for interrupted in (False, True):
        params = parameters()
        recipe = FakeTeacherOptimizerRecipe(lr=1e-2)
        updater = Updater("fake_teacher", params, recipe, lr_schedule=LRSchedule(3))
        for number in range(4):
            if interrupted and number == 2:
                saved = {name: tensor.clone() for name, tensor in updater.tensors().items()}
                updater = Updater("fake_teacher", params, recipe, lr_schedule=LRSchedule(3))
                updater.load({**saved, "student/exp_avg/b": torch.zeros(4)}, updates=2)
            give_gradients(params, seed=number)
            updater.update(LOSS, step=number)
        ways.append(params)
    for name, parameter in ways[0].items():
        assert torch.equal(parameter, ways[1][name])


def test_the_mean_follows_its_formula():
    params = parameters()
    ema = Ema(params, max_decay=0.3)
    mean = {name: p.detach().clone() for name, p in params.items()}
    for n in range(6):
        give_gradients(params, seed=n)
        with torch.no_grad():
            for parameter in params.values():
                parameter += parameter.grad
        decay = min((1 + n) / (10 + n), 0.3)
        assert ema.decay == pytest.approx(decay)
        ema.update()
        mean = {name: decay * mean[name] + (1 - decay) * p.detach() for name, p in params.items()}
        for name, value in mean.items():
            torch.testing.assert_close(ema.weights[name], value)
    assert Ema(params).decay == 0.1


def test_the_mean_can_be_looked_at_in_place():
    params = parameters()
    ema = Ema(params)
    with torch.no_grad():
        params["b"] += 1
    own, mean = params["b"].detach().clone(), ema.weights["b"].clone()
    with ema.applied():
        assert torch.equal(params["b"], mean)
    assert torch.equal(params["b"], own) and torch.equal(ema.weights["b"], mean)


class Calls(TorchDispatchMode):
    """Context that counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_all_weights_are_gone_over_in_one_call():
    """AdamW, norm, clipping, mean and pull: as many operations for three tensors as for thirty."""
    found = []
    for copies in (1, 10):
        params = {f"{i}.{n}": p for i in range(copies) for n, p in parameters(i).items()}
        student = [torch.zeros_like(each) for each in params.values()]
        updater = Updater("fake_teacher", params, FakeTeacherOptimizerRecipe())
        ema = Ema(params)
        for number in range(2):  # moments come with the first
            give_gradients(params, 5.0, seed=number)
            with Calls() as calls:
                updater.update(LOSS, step=number)
                mix_weights(params.values(), student, 0.1)
                ema.update()
        found.append(calls.count)
    assert 0 < found[0] == found[1]
