"""The SD3 adapter against the stock pipeline, with real classes at tiny size."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from fewstep import backbones
from fewstep.errors import FewstepError
from fewstep.records import Conditioning
from fewstep.schedules import few_step_sigmas, with_shift
from fewstep.simulate import guided, sample

PROMPTS = ["small red circle left", "blue square and large pink cross top on gray"]
LENGTH = 16


@pytest.fixture(scope="module")
def backbone(pipeline_folder):
    return backbones.load(pipeline_folder, max_sequence_length=LENGTH)


@pytest.fixture(scope="module")
def pipe(pipeline_folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(backbone, count, height=64, width=64):
    shape = (count, *backbone.latent_shape(height, width))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ours(backbone, velocity, cond, start, height=64, width=64):
    base = torch.tensor(few_step_sigmas(4))
    sigmas = with_shift(base, backbone.shift(height, width))
    with torch.no_grad():
        return sample(velocity, start, sigmas, cond)


def stock(pipe, start, guidance, height=64, width=64, output_type="latent"):
    return pipe(
        PROMPTS,
        latents=start,
        sigmas=few_step_sigmas(4),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=height,
        width=width,
        max_sequence_length=LENGTH,
        output_type=output_type,
    ).images


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64)])
def test_four_steps_equal_the_stock_pipeline(backbone, pipe, size):
    start = noise(backbone, 2, *size)

    def velocity(xt, sigma, cond):
        return backbone.velocity(backbone.net, xt, sigma, cond)

    found = ours(backbone, velocity, backbone.encode(PROMPTS), start, *size)
    assert close(found, stock(pipe, start, 1.0, *size))


def test_guided_steps_equal_the_stock_pipeline(backbone, pipe):
    start = noise(backbone, 2)

    def velocity(xt, sigma, cond):
        return backbone.velocity(backbone.net, xt, sigma, cond)

    found = ours(backbone, guided(velocity, backbone.null(2), 4.0), backbone.encode(PROMPTS), start)
    assert close(found, stock(pipe, start, 4.0))


def test_an_oracle_network_proves_the_sign_and_the_clock(backbone):
    """A network that knows x0 answers (x - x0) / sigma; walking down the grid must land on x0."""
    target = noise(backbone, 2) * 0.3

    class Oracle(torch.nn.Module):
        def forward(self, hidden_states, timestep, **_):
            sigma = (timestep / 1000)[:, None, None, None]
            return ((hidden_states - target) / sigma,)

    def velocity(xt, sigma, cond):
        return backbone.velocity(Oracle(), xt, sigma, cond)

    found = ours(backbone, velocity, backbone.encode(PROMPTS), noise(backbone, 2))
    assert close(found, target)


def test_decoding_equals_the_stock_pipeline(backbone, pipe):
    start = noise(backbone, 2)
    latents = stock(pipe, start, 1.0)
    images = backbone.decode(latents)
    expected = torch.from_numpy(stock(pipe, start, 1.0, output_type="np")).permute(0, 3, 1, 2)
    assert images.dtype == torch.float32
    assert close(images, expected)


def test_null_is_the_encoded_empty_prompt(backbone):
    null, empty = backbone.null(3), backbone.encode(["", "", ""])
    for name, tensor in null.tensors.items():
        assert close(tensor, empty.tensors[name])
        assert tensor.abs().max() > 0


def test_prompts_change_the_output_and_the_batch_does_not(backbone):
    start, sigma = noise(backbone, 2), torch.tensor([0.9, 0.4])
    together = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        alone = backbone.velocity(
            backbone.net, start[i : i + 1], sigma[i : i + 1], backbone.encode([prompt])
        )
        assert close(together[i : i + 1], alone)
    swapped = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS[::-1]))
    assert (swapped - together).abs().max() > 1e-3


def test_a_prompt_list_is_left_alone(backbone):
    prompts = list(PROMPTS)
    backbone.encode(prompts)
    assert prompts == PROMPTS


def test_bfloat16_is_near_and_comes_back_as_float32(backbone, pipeline_folder):
    low = backbones.load(pipeline_folder, dtype="bfloat16", max_sequence_length=LENGTH)
    start, sigma = noise(backbone, 2), torch.tensor([0.9, 0.4])
    exact = backbone.velocity(backbone.net, start, sigma, backbone.encode(PROMPTS))
    rough = low.velocity(low.net, start, sigma, low.encode(PROMPTS))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_gradient_checkpointing_gives_equal_gradients(backbone):
    start, sigma, cond = noise(backbone, 2), torch.tensor([0.9, 0.4]), backbone.encode(PROMPTS)

    def gradients(net):
        net.train().requires_grad_(True)
        backbone.velocity(net, start, sigma, cond).square().mean().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    plain, saving = copy.deepcopy(backbone.net), copy.deepcopy(backbone.net)
    saving.enable_gradient_checkpointing()
    for one, other in zip(gradients(plain), gradients(saving), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_blocks_hold_nearly_all_parameters_at_a_real_shape(backbone):
    """Counted on the meta device at SD3-Medium's published size."""
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        net = SD3Transformer2DModel(sample_size=128, num_layers=24, num_attention_heads=24)
    inside = {id(p) for block in backbone.blocks(net) for p in block.parameters()}
    total = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in net.parameters() if id(p) in inside) / total >= 0.95


def test_lora_targets_are_linear_layers_of_the_blocks(backbone):
    targets = backbone.lora_targets(backbone.net)
    modules = dict(backbone.net.named_modules())
    assert targets
    assert all(isinstance(modules[name], torch.nn.Linear) for name in targets)
    assert all(name.startswith("transformer_blocks.") for name in targets)
    assert any(".attn." in name for name in targets) and any(".ff." in name for name in targets)


def test_saved_folder_loads_in_the_stock_pipeline_with_the_new_network(backbone, tmp_path):
    net = copy.deepcopy(backbone.net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    backbone.save(tmp_path / "out", net)
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    cond = backbone.encode(PROMPTS)
    start, sigma = noise(backbone, 2), torch.tensor([0.9, 0.4])
    with torch.no_grad():
        expected = backbone.velocity(net, start, sigma, cond)
        assert torch.equal(backbone.velocity(again.transformer, start, sigma, cond), expected)


def test_encoders_can_be_freed(pipeline_folder):
    backbone = backbones.load(pipeline_folder, max_sequence_length=LENGTH)
    before: Conditioning = backbone.encode([""])
    backbone.free_encoders()
    assert backbone.pipe.text_encoder_3 is None
    assert torch.equal(backbone.null(1).tensors["pooled"], before.tensors["pooled"])
    with pytest.raises(FewstepError, match="freed"):
        backbone.encode(["red circle"])


def test_sizes_that_do_not_fit_are_refused(backbone):
    with pytest.raises(FewstepError, match="multiples of 16"):
        backbone.latent_shape(60, 64)


def test_loading_mistakes_are_explained(tmp_path, pipeline_folder):
    with pytest.raises(FewstepError, match="no such folder"):
        backbones.load(tmp_path / "nowhere")
    with pytest.raises(FewstepError, match="no model_index"):
        backbones.load(tmp_path)
    with pytest.raises(FewstepError, match="did you mean 'max_sequence_length'"):
        backbones.load(pipeline_folder, max_sequence_lenght=3)
    with pytest.raises(FewstepError, match="dtype"):
        backbones.load(pipeline_folder, dtype="float31")
    index = {"_class_name": "ShapEPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(FewstepError, match="ShapEPipeline is not supported"):
        backbones.load(tmp_path)
