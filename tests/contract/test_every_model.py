"""What every model family owes, whoever wrote it: families are found by discovery."""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep import models
from fewstep.core.schedules import few_step_sigmas
from fewstep.utils.errors import FewstepError
from tiny.stock import PROMPTS, close, noisy, ours, stock, velocity_of


@pytest.fixture(scope="module")
def cond(backbone):
    return backbone.encode(PROMPTS)


@pytest.fixture(scope="module")
def start(tiny, backbone):
    return backbone.draw_noise(range(2), *tiny.size)


@pytest.fixture(scope="module")
def drawn(tiny, backbone, cond, start):
    """Four steps without guidance."""
    return ours(backbone, velocity_of(backbone), cond, start, tiny.size)


# ------------------------------------------------------------------------------ the stock pipeline


def test_four_steps_equal_the_stock_pipeline(tiny, backbone, pipe, start, drawn):
    assert close(drawn, stock(pipe, tiny, backbone, start, tiny.size), tiny.tolerance)
    assert not close(drawn, start, 0.1)


def test_four_steps_equal_the_stock_pipeline_at_another_size(tiny, backbone, pipe, cond):
    start = backbone.draw_noise(range(2), *tiny.wide)
    result = ours(backbone, velocity_of(backbone), cond, start, tiny.wide)
    assert close(result, stock(pipe, tiny, backbone, start, tiny.wide), tiny.tolerance)


@pytest.mark.parametrize(("shift", "terminal"), [(1.3, "model"), (None, 0.05), (1.3, 0.05)])
def test_steps_on_a_grid_of_the_students_own_equal_the_stock_pipeline(
    tiny, backbone, pipe, cond, start, drawn, shift, terminal
):
    no_such_end = tiny.family == "wan" and terminal != "model"
    if backbone.prediction != "velocity" or no_such_end:
        with pytest.raises(FewstepError):  # their schedulers have no such thing to set
            backbone.effective_shift(shift, *tiny.size, terminal=terminal)
        return
    own = {"shift": shift, "terminal": terminal}
    result = ours(backbone, velocity_of(backbone), cond, start, tiny.size, **own)
    theirs, pipe.scheduler = pipe.scheduler, backbone.student_scheduler(**own)
    try:
        expected = stock(pipe, tiny, backbone, start, tiny.size)
    finally:
        pipe.scheduler = theirs
    # The stretch is the same up to rounding, which these networks make large near its end.
    assert close(result, expected, tiny.tolerance if terminal == "model" else 1e-4)
    assert not close(result, drawn, 1e-3)


def test_guided_steps_equal_the_stock_pipeline(tiny, backbone, pipe, cond, start, drawn):
    if tiny.guided is None:
        pytest.skip("no second branch to be guided by")
    velocity = backbone.guided(velocity_of(backbone), 2, tiny.guidance)
    result = ours(backbone, velocity, cond, start, tiny.size)
    more = tiny.guided(tiny.guidance)
    expected = stock(pipe, tiny, backbone, start, tiny.size, **more)
    assert close(result, expected, tiny.tolerance)
    assert not close(result, drawn, 1e-3)


def test_noise_is_what_the_stock_pipeline_draws(tiny, backbone, pipe):
    start = backbone.draw_noise([3], *tiny.size)
    cond = backbone.encode(PROMPTS[:1])
    result = ours(backbone, velocity_of(backbone), cond, start, tiny.size)
    call = backbone.stock_call(few_step_sigmas(4), *tiny.size) | {"output_type": "latent"}
    output = pipe(prompt=PROMPTS[0], generator=torch.Generator("cpu").manual_seed(3), **call)
    expected = tiny.back(backbone, next(iter(output.values())), tiny.size)
    assert close(result, expected, tiny.tolerance)


def test_decoding_equals_the_stock_pipeline(tiny, backbone, pipe, start, drawn):
    if backbone.task != "text-to-image":
        pytest.skip("a video; see tests/models/test_wan.py")
    with torch.no_grad():
        images = backbone.decode(drawn)
    expected = stock(pipe, tiny, backbone, start, tiny.size, output_type="np")
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, *tiny.size)
    assert (images - torch.from_numpy(expected).permute(0, 3, 1, 2)).abs().max() < 1e-3


def test_an_oracle_network_proves_the_sign_and_the_clock(tiny, backbone, cond, start, drawn):
    """A network that knows x0 answers (x - x0) / sigma; walking down the grid must land on x0."""
    target = 0.3 * backbone.draw_noise([8, 9], *tiny.size)
    velocity = velocity_of(backbone, tiny.oracle(target))
    assert close(ours(backbone, velocity, cond, start, tiny.size), target, 1e-4)
    assert not close(drawn, target, 0.5), "the random network itself lands elsewhere"


def test_shift_is_read_from_the_scheduler(tiny, backbone, folder):
    base = few_step_sigmas(4)
    before = backbone.shift(*tiny.size)(base)
    assert before[0] == pytest.approx(tiny.first, abs=1e-3)
    assert all(a > b > 0 for a, b in pairwise(before))
    tensor = backbone.shift(*tiny.size)(torch.tensor(base, dtype=torch.float64))
    assert torch.allclose(tensor, torch.tensor(before, dtype=torch.float64), atol=1e-6)


# ------------------------------------------------------------------------------------- prompts


def test_prompts_change_the_output_and_the_batch_does_not(tiny, backbone):
    start, sigma = noisy(backbone, tiny.size)
    with torch.no_grad():
        together = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS))
        for i, prompt in enumerate(PROMPTS):
            row = slice(i, i + 1)
            alone = backbone.velocity(
                backbone.net, start[row], sigma[row], backbone.encode([prompt])
            )
            assert close(together[row], alone, 2e-5)
        swapped = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS[::-1]))
    assert not close(swapped, together, 1e-3)


def test_null_is_encoded_and_is_not_zero(tiny, backbone):
    null = backbone.null(3)
    assert null.batch == 3
    assert null.tensors.keys() == backbone.encode(PROMPTS).tensors.keys()
    assert any(tensor.float().abs().max() > 0 for tensor in null.tensors.values())
    shapes = {name: tensor.shape[1:] for name, tensor in backbone.encode(PROMPTS).tensors.items()}
    assert {name: tensor.shape[1:] for name, tensor in null.tensors.items()} == shapes
    if type(backbone).encode_null is models.Backbone.encode_null:  # else the guided law tells
        empty = backbone.encode([""] * 3)
        for name, tensor in null.tensors.items():
            assert close(tensor.float(), empty.tensors[name].float())


def test_a_prompt_list_is_left_alone(backbone):
    prompts = list(PROMPTS)
    first, second = backbone.encode(prompts), backbone.encode(prompts)
    assert prompts == PROMPTS
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])


def test_encoders_can_be_freed(tiny, folder):
    backbone = models.load(folder, **tiny.options)
    cond = backbone.encode(PROMPTS)
    backbone.free_encoders()
    assert all(getattr(backbone.pipe, name, None) is None for name in backbone.encoder_names)
    start, sigma = noisy(backbone, tiny.size)
    with torch.no_grad():
        assert torch.isfinite(backbone.velocity(backbone.net, start, sigma, cond)).all()
        assert torch.isfinite(backbone.velocity(backbone.net, start, sigma, backbone.null(2))).all()


# ------------------------------------------------------------------------------------- the network


def test_bfloat16_is_near_and_comes_back_as_float32(tiny, backbone, folder):
    low = models.load(folder, dtype="bfloat16", **tiny.options)
    start, sigma = noisy(backbone, tiny.size)
    with torch.no_grad():
        exact = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS))
        rough = low.velocity(low.net, start, sigma, low.encode(PROMPTS))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.08


def test_gradient_checkpointing_gives_equal_gradients(tiny, backbone):
    start, sigma = noisy(backbone, tiny.size)
    cond = backbone.encode(PROMPTS)

    def gradients(net):
        net.train().requires_grad_(True)
        backbone.velocity(net, start, sigma, cond).square().mean().backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    plain, saving = copy.deepcopy(backbone.net), copy.deepcopy(backbone.net)
    saving.enable_gradient_checkpointing()
    one, other = gradients(plain), gradients(saving)
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], rtol=1e-4, atol=1e-6), name


class _Waits(TorchDispatchMode):
    """Notes operations for which the host waits for a device.

    They are host reads, which fail by themselves without values, and copies from there to here and
    back that do not say that nobody has to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name()
        blocking = "copy" in name and not (kwargs or {}).get("non_blocking")
        devices = {each.device.type for each in args if isinstance(each, torch.Tensor)}
        read = any(word in name for word in ("local_scalar", "nonzero"))
        if read or (blocking and devices | {result.device.type} == {"cpu", "meta"}):
            self.seen.append(f"{name} {[tuple(x.shape) for x in args if hasattr(x, 'shape')]}")
        return result


def test_a_network_call_never_waits_for_the_device(tiny, folder, cond):
    """On the meta device, where a host read fails and a copy is seen."""
    meta = models.load_meta(folder, **tiny.options)
    start = torch.empty(2, *meta.latent_shape(*tiny.wide), device="meta")
    there, sigma, waits = cond.to("meta"), torch.empty(2, device="meta"), _Waits()
    with torch.no_grad():
        meta.velocity(meta.net, start, sigma, there)  # what is moved once and stays is
        with waits:
            result = meta.velocity(meta.net, start, sigma, there)
    assert result.shape == start.shape
    assert waits.seen == []


def test_blocks_hold_nearly_all_parameters_at_the_published_size(tiny, backbone):
    with torch.device("meta"):
        net = tiny.published()
    inside = {id(p) for block in backbone.blocks(net) for p in block.parameters()}
    total = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in net.parameters() if id(p) in inside) / total >= 0.95


def test_lora_targets_are_linear_layers_of_the_blocks(backbone):
    targets = backbone.lora_targets(backbone.net)
    modules = dict(backbone.net.named_modules())
    inside = {id(m) for block in backbone.blocks(backbone.net) for m in block.modules()}
    assert len(targets) >= 8
    for name in targets:
        assert isinstance(modules[name], torch.nn.Linear)
        assert id(modules[name]) in inside
    assert any(re.search(r"to_q|qkv", name) for name in targets)


def test_saved_folder_loads_with_the_new_network(tiny, backbone, tmp_path):
    net = copy.deepcopy(backbone.net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    backbone.save(tmp_path / "out", net)
    again = models.load(tmp_path / "out", teacher=False, **tiny.options)
    start, sigma = noisy(backbone, tiny.size)
    cond = backbone.encode(PROMPTS)
    with torch.no_grad():
        expected = backbone.velocity(net, start, sigma, cond)
        assert torch.equal(again.velocity(again.net, start, sigma, cond), expected)
