"""Makes the shipped world from a seed: networks, one after the other, and lists of prompts."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from safetensors.torch import save_file

from toyworld_training import autoencoder, denoiser, feature_net, pipeline, text
from toyworld_training.fit import FitSettings
from toyworld_training.prompts import distinct_prompts

_TRAIN, _HELD_OUT, _PREVIEW = 4096, 1200, 64  # captions a list
Say = Callable[[str], None]


def make(
    work: Path,
    out: Path,
    *,
    seed: int = 0,
    start: Path | None = None,
    device: str = "cpu",
    steps: int | None = None,
    compiled: bool = False,
    say: Say,
) -> None:
    """Trains every network in `work`, continuing what is there, and writes the world to `out`.

    On two CPU cores this takes some four hours. `out` is replaced only when all is done.

    Args:
        work: Folder for logs and unfinished training.
        out: Folder for `pipeline/`, `features.safetensors`, `prompts/` and `made.json`.
        seed: Decides everything.
        start: A pipeline folder to begin with: only its transformer is trained on.
        device: Where to train.
        steps: Of every network, to try whether it works; None for as many as it takes.
        compiled: Whether torch compiles the transformer for training.
        say: Told in one line what begins.
    """
    began = time.monotonic()
    known = StableDiffusion3Pipeline.from_pretrained(start) if start else None
    parts = (autoencoder, feature_net, text, denoiser)
    plans = [_shortened(part.SETTINGS, steps) for part in parts]
    vae = known.vae.eval() if known else None
    if vae is None:
        say(f"autoencoder: {plans[0].steps} steps")
        vae = _autoencoder(work, seed, plans[0], device)
    say(f"features: {plans[1].steps} steps")
    judge = feature_net.train(work / "features", seed=seed, settings=plans[1])
    pipe = known
    if pipe is None:
        say(f"text encoders: {plans[2].steps} steps")
        pipe = pipeline.build(seed, pipeline.SHIPPED, vae=vae)
        pipeline.start_as_identity(pipe.transformer)
        text.train(pipe, work / "text", seed=seed, settings=plans[2], device=device)
    say(f"teacher: scenes, then {plans[3].steps} steps")
    pairs = _pairs(vae, work, seed, min(denoiser.SCENES, plans[3].steps * denoiser.BATCH))
    train = partial(denoiser.train, seed=seed, settings=plans[3], device=device, compiled=compiled)
    train(pipe, pairs, work / "teacher")
    fresh = out.with_name(out.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    save_pipeline(pipe, fresh / "pipeline")
    save_file(judge.state_dict(), fresh / "features.safetensors")
    write_prompts(fresh / "prompts")
    facts = {"seed": seed, "torch": torch.__version__, "machine": platform.machine()}
    facts |= {"seconds": round(time.monotonic() - began)}
    facts |= {"continued": start is not None, "device": device}
    (fresh / "made.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


def _shortened(settings: FitSettings, steps: int | None) -> FitSettings:
    return settings if steps is None else replace(settings, steps=min(steps, settings.steps))


def _autoencoder(work: Path, seed: int, settings: FitSettings, device: str) -> AutoencoderKL:
    folder = work / "autoencoder" / "final"
    if not folder.exists():
        vae = autoencoder.train(folder.parent, seed=seed, settings=settings, device=device)
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).eval()


def _pairs(vae: AutoencoderKL, work: Path, seed: int, count: int) -> denoiser.Pairs:
    file = work / "pairs.pt"
    if not file.exists():
        pairs = denoiser.draw_pairs(vae, count, seed)
        torch.save(vars(pairs), work / "pairs.tmp")
        (work / "pairs.tmp").replace(file)
    return denoiser.Pairs(**torch.load(file, weights_only=True))


def save_pipeline(pipe: StableDiffusion3Pipeline, folder: Path) -> None:
    """Writes the pipeline, the two large networks in half precision (loaded as float32).

    The text encoders stay in float32, since transformers would load halves as halves.
    """
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(folder)
    pipe.transformer.float()
    pipe.vae.float()
    for file in folder.rglob("*.json"):  # where a part was loaded from is nobody's business
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_prompts(folder: Path) -> None:
    """Writes three lists of captions, one a line, that share none; only `train` trains anything."""
    folder.mkdir(parents=True)
    kept = distinct_prompts(_HELD_OUT + _PREVIEW, 101, held_out=True)
    lists = {
        "train": distinct_prompts(_TRAIN, 100, held_out=False),
        "heldout": kept[:_HELD_OUT],
        "preview": kept[_HELD_OUT:],
    }
    for name, captions in lists.items():
        text = "".join(f"{caption}\n" for caption in captions)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
