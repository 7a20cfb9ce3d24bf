"""What is shipped: small enough, loadable by plain diffusers, and able to draw what it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from fewstep import models
from fewstep.config import Recipe
from fewstep.evaluation.cache import FeatureCache
from fewstep.evaluation.extractor import configurations_of
from fewstep.evaluation.runner import make_extractor
from fewstep.inference.runs import RunFolder
from fewstep.inference.sample import Sampler, sample_batch
from fewstep.toyworld.features import World
from fewstep.toyworld.oracle import judge, read
from fewstep.toyworld.scenes import draw_scene, parse, render
from fewstep.utils.files import digest_model
from fewstep.utils.resources import resolve
from toyworld_training import autoencoder, pipeline
from toyworld_training.prompts import prompts

DATA = resolve("package://fewstep.toyworld/data")
FOLDER = DATA / "pipeline"


def right(prompt, image):
    return all(flag for _, flag in judge(prompt, read(image)))


def test_everything_shipped_fits_in_sixteen_megabytes():
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert sum(sizes) <= 16e6
    assert not list(DATA.rglob("*.bin")) and not list(DATA.rglob("*.pt"))


def test_plain_diffusers_loads_and_draws():
    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.shift == pipeline.SHIFT
    assert 2 ** (len(pipe.vae.config.block_out_channels) - 1) == 8
    assert pipe.vae.config.shift_factor is not None
    (image,) = pipe(
        "small red circle left",
        num_inference_steps=4,
        guidance_scale=2.0,
        height=64,
        width=64,
        max_sequence_length=pipeline.MAX_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert image.shape == (64, 64, 3)
    assert image.std() > 0.02


def test_the_autoencoder_keeps_scenes_readable():
    backbone = models.load(FOLDER, max_sequence_length=pipeline.MAX_TOKENS)
    vae, rng, stream = backbone.pipe.vae, np.random.default_rng(21), prompts(22, held_out=True)
    found = [next(stream) for _ in range(100)]
    images = torch.from_numpy(render([draw_scene(prompt, rng) for prompt in found]))
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        again = backbone.decode(latents)
    assert abs(latents.mean()) < 0.05 and 0.9 < latents.std() / autoencoder.LATENT_STD < 1.1
    flags = [right(p, i) for p, i in zip(found, again.numpy(), strict=True)]
    assert np.mean(flags) >= 0.97


def test_features_tell_ghosts_from_scenes_and_forgive_saturation():
    rng, stream = np.random.default_rng(23), prompts(24, held_out=True)
    found = [next(stream) for _ in range(200)]
    first, second = (
        torch.from_numpy(render([draw_scene(p, rng) for p in found])) for _ in range(2)
    )
    middle = first.mean(dim=(1, 2, 3), keepdim=True)
    loud = ((first - middle) * 1.2 + middle).clamp(0, 1)
    features = World()
    base = features(first)
    assert base.shape == (200, 64) and base.abs().max() <= 1
    moved = (features(loud) - base).norm(dim=1).mean()
    ghosts = (features((first + second) / 2) - base).norm(dim=1).mean()
    assert moved < 0.5 * ghosts


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"max_sequence_length": pipeline.MAX_TOKENS}, {"max_sequence_length": 1, "t5": False}],
)
def test_the_teacher_draws_what_it_is_asked_and_needs_many_steps_for_it(options):
    """Its figures stand in docs/tiny-world.md."""
    backbone = models.load(FOLDER, **options)
    captions = (DATA / "prompts" / "heldout.txt").read_text(encoding="utf-8").splitlines()[:100]

    def share(steps):
        sampler = Sampler(steps, 3.0, 64, 64)
        images = sample_batch(backbone, backbone.net, captions, range(100), sampler=sampler)
        pairs = zip(captions, images.numpy(), strict=True)
        return np.mean([right(parse(caption), image) for caption, image in pairs])

    assert share(50) >= share(4) + 0.15


def test_the_demo_finds_the_teacher_s_shipped_figures(tmp_path):
    """Whatever they depend on has not changed since: else the demo would draw the teacher anew."""
    recipe = Recipe.named("demo")
    extractor = make_extractor(recipe.evaluate)
    run = RunFolder(tmp_path, recipe)
    backbone = run.load_backbone()
    shipped = FeatureCache(tmp_path, resolve(recipe.evaluate.cache))
    model = digest_model(backbone.source)
    for configuration in configurations_of("teacher", run, backbone):
        key = extractor.cache_key(backbone, backbone.net, configuration.sampler, model)
        kept = shipped.find(key)
        assert kept is not None, f"{configuration.name}: measure it again (--teacher-only)"
        _, made = kept
        assert made["where"] == "shipped" and made["hardware"] and made["date"]
