"""What drawing holds in memory: one part of a pipeline after the other, less than training."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

import fewstep
from fewstep import models
from fewstep.config import Recipe
from fewstep.data.precompute import Encoding, encode_ahead
from fewstep.evaluation import evaluate_run
from fewstep.inference.run import Run
from fewstep.inference.sample import Sampler, write_samples
from fewstep.models.latents import decode_images, pictures_at_once
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import memory_items, peak, sampling_items
from fewstep.planning.memory_tracker import MemoryTracker, MetaTracker
from fewstep.train.memory.quantization import is_quantized
from refusals import refuses
from tiny import flux
from toyworld_training import pipeline

PROMPTS = ["small red circle left", "blue square on gray"]
WIDE = pipeline.Sizes(hidden=256, heads=4, layers=6, clip=128, t5=256, text_layers=6)


class WithValues(MemoryTracker):
    """Counts what has values: while a pipeline is loaded, it is looked at on the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = self.run(func, args, kwargs or {})
        tensors = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.watch(each for each in tensors if not each.is_meta)
        return result


def loaded(kind, *names):
    """Networks of a kind that hold values, by class name."""
    found = (each for each in gc.get_objects() if type(each).__name__ in names)
    return [
        each for each in found if isinstance(each, kind) and not next(each.parameters()).is_meta
    ]


@contextmanager
def watching(net="SD3Transformer2DModel"):
    """Context that lists which kinds of network were called; text encoders alone, and the net."""
    seen, known = set(), set()

    def look(module, _):
        name = type(module).__name__
        if name not in (net, *ENCODERS) or next(module.parameters()).is_meta or id(module) in known:
            return
        known.add(id(module))  # looked at once each: it takes long
        if name == net:
            assert not loaded(PreTrainedModel, *ENCODERS), "the network with text encoders"
        else:
            assert not loaded(torch.nn.Module, net), "a text encoder with the network"
        seen.add("network" if name == net else "encoders")

    handle = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


ENCODERS = ("CLIPTextModelWithProjection", "CLIPTextModel", "T5EncoderModel")


def drawn(model):
    return [np.array(image) for image in model.sample(PROMPTS)]


def test_text_encoders_and_network_are_never_there_together(make_run, tmp_path):
    run = make_run(evaluate={"prompts": PROMPTS, "metrics": ["diversity"], "repeats": [1, 2]})
    with watching() as seen:
        model = fewstep.open(run, device="cpu", prompts=PROMPTS)
        list(write_samples(model, PROMPTS, tmp_path / "out", sampler=Sampler.of(model)))
        assert seen == {"network", "encoders"}
        del model
        gc.collect()
        evaluate_run(run)


def test_every_way_to_hold_it_draws_the_same_pictures(make_run):
    run = make_run("lora")
    plain = drawn(fewstep.open(run, device="cpu", offload="none"))
    for how in ({"offload": "model"}, {"prompts": PROMPTS[:1]}):
        assert all(map(np.array_equal, drawn(fewstep.open(run, device="cpu", **how)), plain))
    with refuses("unknown-name", "unknown offload"):
        fewstep.open(run, offload="some")


def test_embeddings_on_the_disk_are_read(make_run, pipeline_folder, tmp_path):
    encode_ahead(PROMPTS, Encoding(str(pipeline_folder), {"max_sequence_length": 16}), tmp_path)
    run = make_run(data={"prompts": PROMPTS, "batch_size": 2, "cache": str(tmp_path)})
    expected = drawn(fewstep.open(make_run(), device="cpu"))
    with watching() as seen:
        assert all(
            map(np.array_equal, drawn(fewstep.open(run, device="cpu", prompts=PROMPTS)), expected)
        )
    assert seen == {"network"}
    fewstep.open(run, device="cpu").sample("another prompt")  # brings the text encoders


def test_a_run_is_held_as_it_was_trained(pipeline_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = Recipe.from_values(
        {
            "model": {"path": str(pipeline_folder), "options": {"max_sequence_length": 16}},
            "data": {"prompts": str(tmp_path / "prompts.txt"), "batch_size": 2},
            "resolution": {"height": 64, "width": 64},
            "objectives": [{"name": "dm"}],
            "student": {"mode": "lora", "lora": {"rank": 2}, "gradient_checkpointing": True},
            "memory": {"base": "int8"},
            "train": {"steps": 2, "device": "cpu"},
        }
    )
    with Run(recipe, tmp_path / "run") as run:
        for _ in run:
            pass
        expected = [np.array(image) for image in run.student.sample(PROMPTS)]
    model = fewstep.open(tmp_path / "run", prompts=PROMPTS)
    assert any(map(is_quantized, model.net.modules()))
    assert all(map(np.array_equal, drawn(model), expected))


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drawing_takes_less_than_training_was_planned_for(tmp_path, name, dtype):
    folder, options = tmp_path / "model", {"max_sequence_length": 16}
    if name == "sd3":
        pipe = pipeline.build(sizes=WIDE).to(getattr(torch, dtype))
        pipe.save_pretrained(folder, safe_serialization=True)
    else:
        flux.flux.build(folder)
    recipe = Recipe.from_values(
        {
            "model": {"path": str(folder), "options": options, "dtype": dtype},
            "data": {"prompts": PROMPTS, "batch_size": 1, "encode_ahead": True},
            "resolution": {"height": 64, "width": 64},
            "objectives": [{"name": "dm"}],
            "student": {"mode": "lora", "lora": {"rank": 2}, "gradient_checkpointing": True},
            "train": {"steps": 2},
        }
    )
    estimate = Estimate.load(recipe, cuda=False)
    planned, counted = peak(memory_items(estimate)), peak(sampling_items(estimate))
    with WithValues() as tracker:
        model = fewstep.load(folder, dtype=dtype, device="cpu", prompts=PROMPTS, **options)
        model.sample(PROMPTS, steps=4, guidance=1.0, height=64, width=64)
    assert tracker.peak < planned
    assert tracker.peak == pytest.approx(counted, rel=0.1 if name == "sd3" else 0.25)
    whole = models.load(folder, dtype=dtype, **options)
    parts = [part for part in whole.pipe.components.values() if isinstance(part, torch.nn.Module)]
    held = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
    assert name == "flux" or tracker.peak < 0.8 * held


def test_large_pictures_are_decoded_in_tiles():
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            sample_size=1024,
        )
    peaks = {}
    for side in (1024, 2048):
        with torch.no_grad(), MetaTracker({}) as tracker:
            pictures = decode_images(vae, torch.empty(1, 16, side // 8, side // 8, device="meta"))
        assert pictures.shape == (1, 3, side, side) and not vae.use_tiling
        peaks[side] = tracker.peak
    assert peaks[2048] < 1.5 * peaks[1024]
    assert pictures_at_once(1024, 1024) == 1 and pictures_at_once(64, 64) >= 64
