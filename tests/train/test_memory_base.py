"""The shared network of three roles in fewer bits: near, trainable around, exported right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewstep.errors import FewstepError
from fewstep.randomness import Draws
from fewstep.train.loop import advance as step
from fewstep.train.quantise import Fp8, Int8, Nf4, Quantised, nf4_levels
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, TRAINED, become_student

FORMATS = {"int8": (Int8, 0.01, 1.1), "fp8": (Fp8, 0.04, 1.1), "nf4": (Nf4, 0.12, 0.6)}
"""Format -> layer, relative error of a weight (and of a velocity), bytes a weight at most."""
LORA = ["student.mode=lora", "student.lora.rank=4"]


def error(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


def advance(run):
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.opened(0):
        step(run)


def ask(run, role):
    xt = Draws(3, 0).normal("xt", range(2), (16, 8, 8))
    cond = run.encoder.encode(["a ring", "a star"])
    return getattr(run.trainees.roles, role)(xt, torch.tensor([0.8, 0.3]), cond)


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_stays_near(name):
    make, tolerance, width = FORMATS[name]
    torch.manual_seed(0)
    linear = nn.Linear(96, 50)  # 4800 weights: 75 groups of 64, whatever the rows
    layer = make(linear)
    assert error(layer.weight, linear.weight) < tolerance
    x = torch.randn(3, 7, 96)
    assert error(layer(x), linear(x)) < tolerance
    assert torch.equal(layer(x), functional.linear(x, layer.weight, linear.bias))
    held = layer.codes.nbytes + layer.scales.nbytes
    assert held <= width * linear.weight.numel()
    assert isinstance(layer, nn.Linear) and not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_pass_through_and_no_graph_keeps_the_weight(name):
    torch.manual_seed(0)
    layer = FORMATS[name][0](nn.Linear(64, 32))
    x, kept = torch.randn(5, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x).square().sum().backward()
    expected = torch.autograd.grad(functional.linear(x, layer.weight, layer.bias).square().sum(), x)
    torch.testing.assert_close(x.grad, expected[0])
    assert torch.Size([32, 64]) not in kept


def test_odd_sizes_and_zeros():
    linear = nn.Linear(5, 3)
    nn.init.zeros_(linear.weight)
    for make, _, _ in FORMATS.values():
        assert torch.equal(make(linear).weight, linear.weight)


def test_nf4_is_the_published_table():
    levels = nf4_levels()
    assert levels[0] == -1 and levels[7] == 0 and levels[15] == 1
    published = [-0.6961928, -0.5250731, 0.0795803, 0.1609302, 0.7229568]  # QLoRA, appendix E
    torch.testing.assert_close(levels[[1, 2, 8, 9, 14]], torch.tensor(published))


def test_autocast_decides_the_precision():
    layer = Int8(nn.Linear(64, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_on_a_quantised_base(name, make_run):
    plain = ask(make_run(*LORA), TEACHER)
    run = make_run(*LORA, f"memory.base={name}", "student.every=1")
    roles = run.trainees.roles
    teacher = ask(run, TEACHER)
    assert 0 < error(teacher, plain) < 2 * FORMATS[name][1]
    for role in TRAINED:
        assert torch.equal(ask(run, role), teacher), "adapters that were not trained do nothing"
    net = roles.net(TEACHER)
    inside = [part for part in net.modules() if isinstance(part, Quantised)]
    assert inside and not any(p.requires_grad for part in inside for p in part.parameters())
    base = {n: t.clone() for n, t in net.state_dict().items() if ".lora_" not in n}
    before = {r: {n: p.clone() for n, p in roles.parameters(r).items()} for r in TRAINED}
    advance(run)
    assert torch.equal(ask(run, TEACHER), teacher)
    after = net.state_dict()
    assert all(torch.equal(after[n], t) for n, t in base.items())
    for role in TRAINED:
        assert any(not torch.equal(p, before[role][n]) for n, p in roles.parameters(role).items())
    assert not torch.equal(ask(run, STUDENT), ask(run, FAKE_TEACHER))


def test_its_adapter_fits_the_model_as_it_is(make_run, tmp_path):
    """Trained on codes, loaded onto the published weights: the same change of each layer."""
    from fewstep import backbones
    from fewstep.train.roles import adapter_parameters

    run = make_run(*LORA, "memory.base=int8", "student.every=1")
    advance(run)
    state = run.trainees.roles.student_state()
    model = run.recipe.model
    fresh = backbones.load(model.path, **model.options)
    net = become_student(fresh, run.recipe.student, state)
    assert not any(isinstance(part, Quantised) for part in net.modules())
    found = adapter_parameters(net, STUDENT)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    fresh.save_lora(tmp_path / "lora", net, STUDENT)
    other = backbones.load(model.path, **model.options)
    other.load_lora(tmp_path / "lora")
    xt, cond = Draws(3, 0).normal("xt", range(2), (16, 8, 8)), run.encoder.encode(["a", "b"])
    sigma = torch.tensor([0.8, 0.3])
    with torch.no_grad():
        loaded = other.velocity(other.net, xt, sigma, cond)
        torch.testing.assert_close(loaded, fresh.velocity(net, xt, sigma, cond))
        ours = run.trainees.roles.student(xt, sigma, cond)
    assert error(ours, loaded) < 0.02


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["memory.base=int8"], "memory.base: mode full trains every network whole"),
        ([*LORA, "memory.base=int3"], "memory.base: must be"),
        ([*LORA, "memory.bases=int8"], "memory.bases: unknown key; did you mean 'base'"),
        ([*LORA, "memory.teacher_dtype=bfloat16"], "memory.teacher_dtype: in mode lora"),
        ([*LORA, "memory.trained_dtype=bfloat16"], "memory.trained_dtype: in mode lora"),
        (["memory.trained_dtype=bfloat16"], "needs the same model.dtype"),
        (["student.optimizer.name=adam8bit"], "student.optimizer.name: must be"),
        (["student.gradient_checkpointing=0"], "student.gradient_checkpointing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make_recipe, overrides, told):
    with pytest.raises(FewstepError, match=told) as caught:
        make_recipe(*overrides)
    assert "\n" not in str(caught.value)
