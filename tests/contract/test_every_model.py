"""What every backbone owes, whoever wrote it: pipelines and families are found by discovery."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import runpy
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from rich.console import Console

from fewstep import models
from fewstep.config import Recipe
from fewstep.core.schedules import few_step_sigmas, with_shift
from fewstep.core.solver import sample
from fewstep.inference.load import export_model, open_model
from fewstep.inference.sample import Sampler, sample_images, to_pixels
from fewstep.train.state import build, check
from fewstep.train.trainer import advance
from fewstep.utils.errors import FewstepError
from tiny import discover

TINY = discover()
PROMPTS = ["small red circle left", "a blue square and one large pink cross at the top, on gray"]


def test_every_family_has_a_tiny_pipeline():
    assert {each.family for each in TINY.values()} == {row.name for row in models.available()}


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request):
    return TINY[request.param]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp(tiny.name) / "pipeline"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny, folder):
    loaded = models.load(folder, **tiny.options)
    assert loaded.name == tiny.family
    return loaded


@pytest.fixture(scope="module")
def pipe(tiny, backbone, folder):
    """The stock pipeline, with the scheduler that a student needs."""
    missing = backbone.load_overrides(folder, **tiny.options)
    pipe = DiffusionPipeline.from_pretrained(folder, **missing)
    pipe.set_progress_bar_config(disable=True)
    if scheduler := backbone.student_scheduler():
        pipe.scheduler = scheduler
    return pipe


def close(found, expected, tolerance=1e-5):
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


def velocity_of(backbone, net=None):
    def velocity(xt, sigma, cond):
        return backbone.velocity(backbone.net if net is None else net, xt, sigma, cond)

    return velocity


def ours(backbone, velocity, cond, start, size, shift=None):
    # In float32, as the schedulers do.
    base = torch.tensor(few_step_sigmas(4), dtype=torch.float32)
    grid = with_shift(base, backbone.effective_shift(shift, *size))
    with torch.no_grad():
        return sample(velocity, start, grid, cond)


def stock(pipe, tiny, backbone, start, size, *, prompts=PROMPTS, **more):
    call = backbone.stock_call(few_step_sigmas(4), *size) | {"output_type": "latent"} | more
    found = pipe(prompt=list(prompts), latents=tiny.latents(backbone, start, size), **call)
    images = next(iter(found.values()))
    return images if call["output_type"] != "latent" else tiny.back(backbone, images, size)


def somewhere(backbone, size, count=2):
    start = backbone.draw_noise(range(count), *size)
    return start, torch.tensor([0.9, 0.4])[:count]


# ------------------------------------------------------------------------------ the stock pipeline


@pytest.mark.parametrize("shape", ["size", "wide"])
def test_four_steps_equal_the_stock_pipeline(tiny, backbone, pipe, shape):
    size = getattr(tiny, shape)
    start = backbone.draw_noise(range(2), *size)
    found = ours(backbone, velocity_of(backbone), backbone.encode(PROMPTS), start, size)
    expected = stock(pipe, tiny, backbone, start, size)
    assert close(found, expected, tiny.tolerance)
    assert not close(found, start, 0.1)


def test_steps_on_a_grid_of_the_students_own_equal_the_stock_pipeline(tiny, backbone, pipe):
    if backbone.prediction != "velocity":
        with pytest.raises(FewstepError):  # their schedulers have no shift to set
            backbone.effective_shift(1.3, *tiny.size)
        return
    start, cond = backbone.draw_noise(range(2), *tiny.size), backbone.encode(PROMPTS)
    velocity = velocity_of(backbone)
    found = ours(backbone, velocity, cond, start, tiny.size, shift=1.3)
    theirs, pipe.scheduler = pipe.scheduler, backbone.student_scheduler(1.3)
    try:
        expected = stock(pipe, tiny, backbone, start, tiny.size)
    finally:
        pipe.scheduler = theirs
    assert close(found, expected, tiny.tolerance)
    assert not close(found, ours(backbone, velocity, cond, start, tiny.size), 1e-3)


def test_guided_steps_equal_the_stock_pipeline(tiny, backbone, pipe):
    if tiny.guided is None:
        pytest.skip("no second branch to be guided by")
    start, cond = backbone.draw_noise(range(2), *tiny.size), backbone.encode(PROMPTS)
    velocity = backbone.guided(velocity_of(backbone), 2, tiny.guidance)
    found = ours(backbone, velocity, cond, start, tiny.size)
    more = tiny.guided(tiny.guidance)
    expected = stock(pipe, tiny, backbone, start, tiny.size, **more)
    assert close(found, expected, tiny.tolerance)
    plain = ours(backbone, velocity_of(backbone), cond, start, tiny.size)
    assert not close(found, plain, 1e-3)


def test_noise_is_what_the_stock_pipeline_draws(tiny, backbone, pipe):
    start = backbone.draw_noise([3], *tiny.size)
    cond = backbone.encode(PROMPTS[:1])
    found = ours(backbone, velocity_of(backbone), cond, start, tiny.size)
    call = backbone.stock_call(few_step_sigmas(4), *tiny.size) | {"output_type": "latent"}
    drawn = pipe(prompt=PROMPTS[0], generator=torch.Generator("cpu").manual_seed(3), **call)
    expected = tiny.back(backbone, next(iter(drawn.values())), tiny.size)
    assert close(found, expected, tiny.tolerance)


def test_decoding_equals_the_stock_pipeline(tiny, backbone, pipe):
    if tiny.family == "wan":
        pytest.skip("a video; see tests/models/test_wan.py")
    start = backbone.draw_noise(range(2), *tiny.size)
    found = ours(backbone, velocity_of(backbone), backbone.encode(PROMPTS), start, tiny.size)
    with torch.no_grad():
        images = backbone.decode(found)
    expected = stock(pipe, tiny, backbone, start, tiny.size, output_type="np")
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, *tiny.size)
    assert (images - torch.from_numpy(expected).permute(0, 3, 1, 2)).abs().max() < 1e-3


def test_an_oracle_network_proves_the_sign_and_the_clock(tiny, backbone):
    """A network that knows x0 answers (x - x0) / sigma; walking down the grid must land on x0."""
    target = 0.3 * backbone.draw_noise([8, 9], *tiny.size)
    start = backbone.draw_noise(range(2), *tiny.size)
    velocity = velocity_of(backbone, tiny.oracle(target))
    found = ours(backbone, velocity, backbone.encode(PROMPTS), start, tiny.size)
    assert close(found, target, 1e-4)


def test_shift_is_read_from_the_scheduler(tiny, backbone, folder):
    base = few_step_sigmas(4)
    before = backbone.shift(*tiny.size)(base)
    assert before[0] == pytest.approx(tiny.first, abs=1e-3)
    assert all(a > b > 0 for a, b in pairwise(before))
    tensor = backbone.shift(*tiny.size)(torch.tensor(base, dtype=torch.float64))
    assert torch.allclose(tensor, torch.tensor(before, dtype=torch.float64), atol=1e-6)


# ------------------------------------------------------------------------------------- prompts


def test_prompts_change_the_output_and_the_batch_does_not(tiny, backbone):
    start, sigma = somewhere(backbone, tiny.size)
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
    start, sigma = somewhere(backbone, tiny.size)
    with torch.no_grad():
        assert torch.isfinite(backbone.velocity(backbone.net, start, sigma, cond)).all()
        assert torch.isfinite(backbone.velocity(backbone.net, start, sigma, backbone.null(2))).all()


# ------------------------------------------------------------------------------------- the network


def test_bfloat16_is_near_and_comes_back_as_float32(tiny, backbone, folder):
    low = models.load(folder, dtype="bfloat16", **tiny.options)
    start, sigma = somewhere(backbone, tiny.size)
    with torch.no_grad():
        exact = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS))
        rough = low.velocity(low.net, start, sigma, low.encode(PROMPTS))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.08


def test_gradient_checkpointing_gives_equal_gradients(tiny, backbone):
    start, sigma = somewhere(backbone, tiny.size)
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
    start, sigma = somewhere(backbone, tiny.size)
    cond = backbone.encode(PROMPTS)
    with torch.no_grad():
        expected = backbone.velocity(net, start, sigma, cond)
        assert torch.equal(again.velocity(again.net, start, sigma, cond), expected)


# ------------------------------------------------------------------------------------- a whole run


def recipe_for(tiny, backbone, folder, mode):
    embedded, shift = (
        backbone.guidance == "embedded",
        1.3 if backbone.prediction == "velocity" else None,
    )
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    return Recipe.from_values(
        {
            "model": {"path": str(folder), "options": dict(tiny.options)},
            "data": {"prompts": str(prompts), "batch_size": 2},
            "resolution": {"height": tiny.size[0], "width": tiny.size[1]},
            "grid": {"name": "random", "max_steps": 2, "shift": shift},
            "objectives": [
                {"name": "ca_embedded" if embedded else "ca"},
                {"name": "dm"},
                {"name": "cdm"},
            ],
            "fake_teacher": {"optimizer": {"lr": 1e-3}},
            "student": {
                "mode": mode,
                "every": 1,
                "optimizer": {"lr": 1e-3},
                **({"lora": {"rank": 2}} if mode == "lora" else {}),
            },
            "train": {"steps": 1, "warmup": 0},
            "checkpoint": {"every": 1},
            "preview": {"every": 1, "count": 1, "teacher": {"steps": 1}, "steps": [1]},
            "health": {"every": 1, "count": 1, "sigmas": [0.5]},
        }
    )


def copies(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_it_is_distilled_exported_and_drawn(tiny, backbone, folder, tmp_path, mode):
    """Training moves student and fake teacher only; what is exported draws what is sampled."""
    recipe, place = recipe_for(tiny, backbone, folder, mode), tmp_path / "run"
    place.mkdir()
    (place / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    run = build(recipe, place, check(recipe), Console(file=io.StringIO()))
    roles = run.train_state.roles
    before = {role: copies(roles.parameters(role)) for role in ("student", "fake_teacher")}
    assert before["student"].keys() == before["fake_teacher"].keys()
    with run.log.opened(0):
        advance(run)
    run.saving.wait()
    for role, weights in before.items():
        after = roles.parameters(role)
        assert all(torch.isfinite(weight).all() for weight in after.values())
        # What only pads or the last block's text see has no gradient, and B = 0 keeps A at first.
        moved = [name for name, weight in weights.items() if not torch.equal(weight, after[name])]
        assert len(moved) >= 0.4 * len(weights)
    pretrained = dict(backbone.net.named_parameters())
    for name, weight in roles.net("teacher").named_parameters():
        if ".lora_" not in name:
            assert torch.equal(weight, pretrained[name.replace(".base_layer", "")]), name
    (line,) = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(np.isfinite(v) for v in json.loads(line).values() if isinstance(v, float))

    exported = export_model(place, which="last", merge=mode == "lora" and not tiny.lora)
    model = open_model(exported)
    image = sample_images(model.backbone, model.net, PROMPTS[:1], sampler=Sampler.of(model))[0]
    if tiny.family != "wan":
        assert np.array_equal(run_snippet(exported, tmp_path), np.array(to_pixels(image)))
    assert Sampler(4, height=tiny.size[0], width=tiny.size[1]).evaluations(backbone) == 4


def run_snippet(exported, place):
    """The card's Python as it stands, in the place where it writes; the picture it writes."""
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    (place / "snippet.py").write_text(code, encoding="utf-8")
    with contextlib.chdir(place):
        runpy.run_path("snippet.py")
    with Image.open(place / "image.png") as image:
        return np.array(image)


def test_the_oracle_is_not_the_network(tiny, backbone):
    """Guards the oracle law: the random network itself lands elsewhere."""
    target = 0.3 * backbone.draw_noise([8, 9], *tiny.size)
    start = backbone.draw_noise(range(2), *tiny.size)
    found = ours(backbone, velocity_of(backbone), backbone.encode(PROMPTS), start, tiny.size)
    assert not close(found, target, 0.5)
