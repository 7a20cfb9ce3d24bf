"""The shared network of three roles in fewer bits: near, trainable around, exported right."""

from __future__ import annotations

import copy
import math
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from fewstep import models
from fewstep.core.noise import Draws
from fewstep.train.memory import kept_base
from fewstep.train.memory.quantization import is_quantized, quantize
from fewstep.train.roles import FAKE_TEACHER, STUDENT, TEACHER, TRAINED, become_student
from fewstep.train.trainer import advance as step
from fewstep.utils.errors import FewstepError

FORMATS = {"int8": (0.01, 1.1), "fp8": (0.04, 1.1), "nf4": (0.12, 0.6)}
"""Format -> relative error of a weight and of a layer's answer, bytes a weight at most."""
LORA = ["student.mode=lora", "student.lora.rank=4"]
AGAIN = "student.gradient_checkpointing=true"


def error(found, wanted) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm())


def decoded(weight):
    return weight.dequantize() if hasattr(weight, "qdata") else weight.get_original_weight()


def layers(net):
    return {name: layer for name, layer in net.named_modules() if is_quantized(layer)}


def advance(run):
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.opened(0):
        step(run)


def ask(run, role):
    xt = Draws(3, 0).normal("xt", range(2), (16, 8, 8))
    cond = run.encoder.encode(["a ring", "a star"])
    return getattr(run.train_state.roles, role)(xt, torch.tensor([0.8, 0.3]), cond)


class OneBlock:
    """As much of a backbone as `quantize` asks for: a block of one linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        self.net = nn.Sequential(linear)

    def blocks(self, net: nn.Module) -> list[nn.Module]:
        return [net]


def quantised(name: str, dtype=torch.float32, size=(96, 50)) -> tuple[nn.Linear, nn.Linear]:
    """A layer as it is, and as it is held in a format."""
    torch.manual_seed(0)
    one = OneBlock(nn.Linear(*size).to(dtype))
    plain = copy.deepcopy(one.net[0])
    quantize(one, name)
    return plain.requires_grad_(False), one.net[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_stays_near(name):
    tolerance, width = FORMATS[name]
    plain, layer = quantised(name)  # 4800 weights: 75 groups of 64, whatever the rows
    weight = decoded(layer.weight)
    assert error(weight, plain.weight) < tolerance
    x = torch.randn(3, 7, 96, requires_grad=True)
    found = layer(x)
    assert error(found, plain(x)) < tolerance
    found.square().sum().backward()
    expected = functional.linear(x, weight, plain.bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(x.grad, expected[0], rtol=1e-4, atol=1e-5)
    parts = [getattr(layer.weight, key) for key in layer.weight.__tensor_flatten__()[0]]
    assert sum(part.nbytes for part in parts) <= width * plain.weight.numel() + 64  # NF4's table
    assert isinstance(layer, nn.Linear) and not any(p.requires_grad for p in layer.parameters())


def test_no_graph_keeps_a_weight_that_nf4_decodes():
    _, layer = quantised("nf4")
    x, kept = torch.randn(5, 96, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert kept and all(each is layer.weight or each.numel() < 4800 for each in kept)


def test_nf4_leaves_odd_sizes_as_they_are():
    plain, layer = quantised("nf4", size=(5, 3))
    assert not is_quantized(layer) and torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_is_torchao_s_bit_for_bit(dtype):
    from torchao.quantization import to_nf4

    torch.manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    normal, bounded = torch.randn(2**16 - 256), every[every.abs() <= 1].float()
    values = torch.cat([normal, torch.zeros(64), torch.ones(64), bounded])
    one = OneBlock(nn.Linear(64, len(values) // 64, bias=False))
    weight = values[: one.net[0].weight.numel()].view(-1, 64).to(dtype)
    weight[2000:, 0] = 1  # the others of those groups are what is compared with the bounds
    one.net[0].weight = nn.Parameter(weight.clone())
    quantize(one, "nf4")
    expected = to_nf4(weight, 64, math.gcd(len(weight), 256))
    for part in expected.__tensor_flatten__()[0]:
        assert torch.equal(getattr(one.net[0].weight, part), getattr(expected, part)), part


@pytest.mark.parametrize("name", FORMATS)
def test_kept_codes_stand_in_for_the_weights(name):
    """They are assembled without a look at the weights, which need not be there."""
    torch.manual_seed(0)
    one = OneBlock(nn.Linear(96, 50))
    gone = OneBlock(nn.Linear(96, 50, device="meta"))
    gone.net[0].bias = nn.Parameter(one.net[0].bias.detach().clone())
    kept = quantize(one, name)
    assert quantize(gone, name, kept=kept).keys() == kept.keys()
    x = torch.randn(3, 96)
    assert torch.equal(gone.net[0](x), one.net[0](x))
    assert gone.net[0].weight.device.type == "cpu"


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    one = OneBlock(nn.Linear(64, 32))
    nn.init.zeros_(one.net[0].weight)
    quantize(one, name)
    assert is_quantized(one.net[0]) == (name != "fp8"), "torchao's fp8 cannot hold a row of zeros"
    assert torch.equal(one.net[0](torch.randn(2, 64)), one.net[0].bias.expand(2, 32))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_decides_the_precision(name, dtype):
    _, layer = quantised(name, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 96)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_on_a_quantised_base(name, make_run):
    plain = ask(make_run(*LORA), TEACHER)
    run = make_run(*LORA, AGAIN, f"memory.base={name}", "student.every=1")
    roles = run.train_state.roles
    teacher = ask(run, TEACHER)
    assert 0 < error(teacher, plain) < 2 * FORMATS[name][0]
    for role in TRAINED:
        assert torch.equal(ask(run, role), teacher), "adapters that were not trained do nothing"
    net = roles.net(TEACHER)
    inside = layers(net)
    assert inside and not any(layer.weight.requires_grad for layer in inside.values())
    base = {name: decoded(layer.weight).clone() for name, layer in inside.items()}
    before = {r: {n: p.clone() for n, p in roles.parameters(r).items()} for r in TRAINED}
    advance(run)
    assert torch.equal(ask(run, TEACHER), teacher)
    assert all(torch.equal(decoded(inside[name].weight), was) for name, was in base.items())
    for role in TRAINED:
        assert any(not torch.equal(p, before[role][n]) for n, p in roles.parameters(role).items())
    assert not torch.equal(ask(run, STUDENT), ask(run, FAKE_TEACHER))


def test_its_adapter_fits_the_model_as_it_is(make_run, tmp_path):
    """Trained on codes, loaded onto the published weights: the same change of each layer."""
    from fewstep.models.lora import lora_layers
    from fewstep.train.memory.adapters import adapter_parameters

    run = make_run(*LORA, AGAIN, "memory.base=int8", "student.every=1")
    advance(run)
    state = run.train_state.roles.state("student")
    model = run.recipe.model
    fresh = models.load(model.path, **model.options)
    net = become_student(fresh, run.recipe.student, state)
    assert not layers(net)
    found = adapter_parameters(net, STUDENT)
    assert all(torch.equal(found[name], value) for name, value in state.items())
    fresh.save_lora(tmp_path / "lora", lora_layers(net, STUDENT))
    other = models.load(model.path, **model.options)
    other.load_lora(tmp_path / "lora")
    xt, cond = Draws(3, 0).normal("xt", range(2), (16, 8, 8)), run.encoder.encode(["a", "b"])
    sigma = torch.tensor([0.8, 0.3])
    with torch.no_grad():
        loaded = other.velocity(other.net, xt, sigma, cond)
        torch.testing.assert_close(loaded, fresh.velocity(net, xt, sigma, cond))
        ours = run.train_state.roles.student(xt, sigma, cond)
    assert error(ours, loaded) < 0.02


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.base=int8"],
        [*LORA, "memory.base=int3"],
        [*LORA, "memory.base=int8"],
        [*LORA, "student.gradient_checkpointing=2", "memory.base=fp8"],
        ["memory.offload_optimizer=true", "student.optimizer.name=adamw8bit"],
        [*LORA, "memory.bases=int8"],
        [*LORA, "memory.teacher_dtype=bfloat16"],
        [*LORA, "memory.trained_dtype=bfloat16"],
        ["memory.trained_dtype=bfloat16"],
        ["student.optimizer.name=adam8bit"],
        ["student.gradient_checkpointing=0"],
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make_recipe, overrides):
    with pytest.raises(FewstepError) as caught:
        make_recipe(*overrides)
    assert caught.value.code == "config"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides", [[*LORA, "memory.base=nf4"], ["student.optimizer.name=adamw8bit"]]
)
def test_a_missing_torchao_is_named_with_its_extra(make_run, monkeypatch, overrides):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(FewstepError) as caught:
        make_run(*overrides)
    assert caught.value.code == "missing-dependency"
    assert "\n" not in str(caught.value)


def test_it_is_loaded_without_a_word():
    code = "import fewstep.models; from torchao import optim; import diffusers.quantizers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout + done.stderr


# --------------------------------------------------------------------------------- kept on disk


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_is_the_same_without_what_is_not_read(model, dtype):
    def without(folder, named):
        assert named == dtype and folder.name == "transformer"
        return inside

    whole = models.load(model, dtype=dtype).net
    inside = {name for name in whole.state_dict() if name.endswith("attn.to_q.weight")}
    part = models.load(model, dtype=dtype, without=without).net
    assert part.config == whole.config and part.training == whole.training
    tensors = [dict([*net.named_parameters(), *net.named_buffers()]) for net in (whole, part)]
    assert tensors[0].keys() == tensors[1].keys() >= inside and inside
    for name, tensor in tensors[0].items():
        found = tensors[1][name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.is_meta if name in inside else torch.equal(found, tensor), name


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_the_next_start_reads_codes_and_says_the_same(name, model, cache):
    notes = []
    first = kept_base.load(model, name, note=notes.append)
    (file,) = cache.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    second = kept_base.load(model, name, note=notes.append)
    assert file.stat().st_mtime_ns == written and not notes
    names = {name for name, tensor in first.net.state_dict().items() if not tensor.is_meta}
    assert names == {n for n, tensor in second.net.state_dict().items() if not tensor.is_meta}
    with safe_open(file, "pt") as opened:
        assert {key.rpartition(".")[0] for key in opened.keys()} <= names  # noqa: SIM118
    found = [layers(each.net) for each in (first, second)]
    assert found[0].keys() == found[1].keys() and found[0]
    for key, layer in found[0].items():
        assert torch.equal(decoded(layer.weight), decoded(found[1][key].weight))


@pytest.mark.parametrize("damage", ["cut", "bit", "other weights"])
def test_codes_that_do_not_fit_are_made_anew(damage, model, cache, tmp_path):
    folder, notes = tmp_path / "copy", []
    shutil.copytree(model, folder)
    kept_base.load(folder, "int8")
    (file,) = cache.rglob("*.safetensors")
    content = file.read_bytes()
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "bit":
        file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    else:
        tensors = load_file(weights)
        save_file({key: tensor * 2 for key, tensor in tensors.items()}, weights)
    found = kept_base.load(folder, "int8", note=notes.append)
    assert len(notes) == 1 and str(file) in notes[0]
    wanted = models.load(folder)
    quantize(wanted, "int8")
    for key, layer in layers(wanted.net).items():
        assert torch.equal(decoded(layers(found.net)[key].weight), decoded(layer.weight))
    kept_base.load(folder, "int8", note=notes.append)
    assert len(notes) == 1, "the new codes fit"


def test_a_disk_that_refuses_costs_time_only(model, cache):
    cache.write_text("a file where a folder is wanted")
    notes = []
    assert layers(kept_base.load(model, "int8", note=notes.append).net)
    assert len(notes) == 1 and str(cache) in notes[0]
