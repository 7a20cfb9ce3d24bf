"""What is in memory while training, item by item, on one of several devices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.config import OptimizerRecipe, Recipe
from fewstep.models.base import Backbone
from fewstep.models.dummy_conditioning import dummy_conditioning
from fewstep.models.encoder_memory import encode_batch
from fewstep.models.latents import pictures_at_once
from fewstep.objectives import TrainedNetwork, by_site
from fewstep.planning.counts import count
from fewstep.planning.estimate import Estimate, micro_batch
from fewstep.train.memory.split import Split, whole_bytes

FLOAT32 = 4
WIDTHS = {None: FLOAT32, "float32": FLOAT32, "bfloat16": 2}
"""Bytes of a number; None: trained weights as they are by default."""
BASES = {"int8": 1.0, "fp8": 1.0, "nf4": 1 / 2 + 1 / 64}
"""Bytes of a weight of the frozen base, scales included."""
BUCKET = 64 * 2**20 * FLOAT32  # gradients that are averaged at once, where each process has all


HOST = "host"
"""In place of a moment: in the computer's memory."""
ENCODING, TRAINING, PREVIEWS = "encoding", "training", "previews"
"""Moments of a run: prompts are encoded ahead, before the networks come; it trains; it draws."""
DENOISING, DECODING = "denoising", "decoding"
"""Moments of sampling, after `ENCODING`."""


@dataclass(frozen=True)
class Item:
    """One thing in memory.

    Attributes:
        name: What it is.
        size: In bytes.
        made_of: How the size comes about.
        moments: When it is on the device; `HOST`: it is in the computer's memory.
    """

    name: str
    size: int
    made_of: str
    moments: tuple[str, ...] = (TRAINING, PREVIEWS)

    @property
    def in_training(self) -> bool:
        """Whether it is on the device while training."""
        return TRAINING in self.moments


def by_moment(items: Iterable[Item]) -> dict[str, int]:
    """Bytes on the device at each moment, and in the host's memory."""
    sizes: dict[str, int] = {}
    for item in items:
        for moment in item.moments:
            sizes[moment] = sizes.get(moment, 0) + item.size
    return sizes


def peak(items: Iterable[Item]) -> int:
    """Bytes on the device at the fullest moment."""
    return max((size for moment, size in by_moment(items).items() if moment != HOST), default=0)


def moment_bytes(optimizer: str, sizes: Iterable[int]) -> int:
    """Bytes of an optimizer's two moments, and its count of updates, of parameters of some sizes.

    torchao keeps moments of 8 bits, with a scale for every 256 of them, where there are at least
    4096 and they come out even; others are float32.
    """
    rounded = optimizer != "adamw"
    return sum(
        FLOAT32 + 2 * (n + n // 256 * FLOAT32 if rounded and n >= 4096 and not n % 256 else 4 * n)
        for n in sizes
    )


def optimizers(recipe: Recipe) -> tuple[OptimizerRecipe, OptimizerRecipe]:
    """The student's and the fake teacher's."""
    return recipe.student.optimizer, recipe.fake_teacher.optimizer


def memory_items(estimate: Estimate) -> list[Item]:
    """Everything that training holds on one device at its fullest moment."""
    recipe, sizes, shards = estimate.recipe, estimate.parameters, estimate.shards
    lora, memory = recipe.student.mode == "lora", recipe.memory
    trained_shards = 1 if lora else shards  # adapters stay whole
    trained, width = sizes.trained // trained_shards, WIDTHS[memory.trained_dtype]
    split = _over(trained_shards)
    names = [optimizer.name for optimizer in optimizers(recipe)]
    moments = sum(moment_bytes(name, estimate.trained) for name in names) // trained_shards
    samples = micro_batch(recipe, estimate.gpus)
    activations = _activations(estimate, sizes.trained * width)
    base, made_of = _base(estimate, memory.teacher_dtype or recipe.model.dtype)
    on_host = "; on the host"
    items = [
        Item("shared base, frozen" if lora else "teacher, frozen", base // shards,
             made_of + _over(shards)),
        Item("student and fake teacher", 2 * trained * width, f"2 x trained x {width} B{split}"),
        Item("optimizers", moments,
             f"2 roles x 2 moments{split}{on_host * memory.offload_optimizer}",
             _unless(memory.offload_optimizer)),
        Item("gradients", trained * width, f"trained x {width} B{split}", (TRAINING,)),
        Item("activations and casts", activations,
             f"counted: {samples} sample{'s' * (samples > 1)} at a time, at the fullest moment",
             (TRAINING,)),
    ]  # fmt: skip
    if memory.base is not None:
        items.append(_decoded(estimate.backbone, memory.base, WIDTHS[recipe.model.dtype]))
    if recipe.ema:
        made_of = f"trained x {FLOAT32} B{split}{on_host * memory.offload_ema}"
        items.append(Item("running mean (EMA)", trained * FLOAT32, made_of,
                          _unless(memory.offload_ema)))  # fmt: skip
    if estimate.gpus > 1:
        items += _exchanged(estimate, sizes.trained * width, activations)
    items += [*_batch(estimate), *_frozen_parts(estimate)]
    if brought := _of_objectives(estimate.calls.trained.values()):
        items.append(Item("networks of objectives", brought, "weights, gradients and moments"))
    return items


def _activations(estimate: Estimate, gradients: int) -> int:
    """Most bytes of activations and casts at once in an iteration, beyond all of the gradients.

    Graphs add up where the student is called at several sites before its one backward pass, and
    where its prediction at the anchor is kept while the fake teacher learns. Devices that average
    gradients do so when a role's other activations are gone.
    """
    algorithm, trace = estimate.algorithm, estimate.trace
    graphs = max(len(by_site(group)) for group in algorithm.backward_groups)
    reused = algorithm.reuses_anchor_prediction(estimate.recipe.data.parts(estimate.gpus))
    kept = reused * trace.graph
    one_call = max(trace.forward, trace.backward)
    student = (graphs - 1) * trace.graph + max(one_call, trace.graph + trace.no_grad)
    most = max(kept + one_call, student)
    beyond = max(most - gradients, 0) if trace.with_gradients else most
    beyond = max(beyond, trace.walk - gradients // estimate.shards)
    averaging = estimate.gpus > 1 and estimate.shards == 1
    return max(beyond, kept + _averaged(gradients)) if averaging else beyond


def _of_objectives(networks: Iterable[TrainedNetwork]) -> int:
    """Bytes of networks that objectives bring along, which are whole on every device."""
    sizes = [([p.numel() for p in n.module.parameters()], n.optimizer.name) for n in networks]
    return sum(2 * FLOAT32 * sum(each) + moment_bytes(name, each) for each, name in sizes)


def _over(parts: int) -> str:
    return f" / {parts} devices" if parts > 1 else ""


def _unless(on_host: bool) -> tuple[str, ...]:
    """When something is on the device that may live in the host's memory."""
    return (HOST,) if on_host else (TRAINING, PREVIEWS)


def _batch(estimate: Estimate) -> list[Item]:
    """What an iteration keeps of all of its samples, and the prompts that the host holds."""
    recipe, samples = estimate.recipe, estimate.recipe.data.batch_size // estimate.gpus
    dtype = getattr(torch, recipe.model.dtype)
    prompt = dummy_conditioning(estimate.backbone, 1, dtype).tensors.values()
    encoded = sum(tensor.nbytes for tensor in prompt)
    latents = math.prod(estimate.algorithm.latent_shape) * FLOAT32
    items = [
        Item("encoded prompts", 2 * samples * encoded,
             f"of {samples} samples, and the empty prompt as often", (TRAINING,)),
        Item("anchors", 3 * samples * latents,
             f"of {samples} samples: latents, velocity and x0", (TRAINING,)),
    ]  # fmt: skip
    if recipe.data.cache is None:
        made_of = "bound: data.cache_gb; others are on the disk or encoded again"
        items.append(
            Item("encoded prompts kept", round(recipe.data.cache_gb * 1e9), made_of, (HOST,))
        )
    return items


def _frozen_parts(estimate: Estimate) -> list[Item]:
    """VAE and text encoders, which take no part in training."""
    recipe, sizes = estimate.recipe, estimate.parameters
    offloaded, stored = recipe.memory.offload_vae, recipe.data.cache is not None
    ahead, width = recipe.data.encode_ahead and not stored, WIDTHS[recipe.model.dtype]
    why = "; never loaded" if stored else "; gone before the networks come" if ahead else ""
    encoding = (ENCODING,) if ahead else ()
    vae = (HOST, PREVIEWS) if offloaded else (TRAINING, PREVIEWS)
    encoders = encoding if stored or ahead else (TRAINING, PREVIEWS)
    chunk = -(-recipe.data.batch_size // recipe.data.accumulate)
    shown = min(chunk, pictures_at_once(*recipe.resolution.largest))
    items = [
        Item("VAE", sizes.vae * width, f"VAE x {width} B{'; on the host' * offloaded}",
             vae + encoding),
        Item("text encoders", sizes.encoders * width, f"encoders x {width} B{why}", encoders),
        Item("previews at work", max(estimate.decoding(shown), estimate.trace.no_grad),
             f"counted: {shown} decoded at a time, or the networks' calls", (PREVIEWS,)),
    ]  # fmt: skip
    if ahead:
        low = getattr(torch, recipe.model.dtype)
        items.append(_encoding(estimate, encode_batch(estimate.backbone, low)))
    return items


def _encoding(estimate: Estimate, prompts: int) -> Item:
    """The text encoders' activations; one encoder works after the other."""
    made_of = f"counted: {prompts} prompt{'s' * (prompts > 1)} at a time"
    return Item("text encoders at work", estimate.encoding(prompts), made_of, (ENCODING,))


def sampling_items(estimate: Estimate, pictures: int = 1) -> list[Item]:
    """What drawing pictures from a trained student holds on one device.

    Prompts are encoded first, and the encoders go before the network and the VAE come.

    Args:
        estimate: Of the recipe that trained the student.
        pictures: Drawn at a time.
    """
    recipe, sizes = estimate.recipe, estimate.parameters
    width, late = WIDTHS[recipe.model.dtype], (DENOISING, DECODING)
    base, made_of = _base(estimate, recipe.model.dtype)
    latents = math.prod(estimate.algorithm.latent_shape) * FLOAT32 * pictures
    items = [
        Item("text encoders", sizes.encoders * width, f"encoders x {width} B", (ENCODING,)),
        _encoding(estimate, pictures),
        Item("network", base, made_of, late),
        Item("latents", latents, f"float32, {pictures} at a time", late),
        Item("network at work", estimate.denoising(pictures), "counted: a call without gradients",
             (DENOISING,)),
        Item("VAE", sizes.vae * width, f"VAE x {width} B", late),
        Item("VAE at work", estimate.decoding(pictures), f"counted: {pictures} decoded at a time",
             (DECODING,)),
    ]  # fmt: skip
    if recipe.student.mode == "lora":
        items.append(Item("adapter", sizes.trained * FLOAT32, f"trained x {FLOAT32} B", late))
    if recipe.memory.base is not None:
        items.append(_decoded(estimate.backbone, recipe.memory.base, width, (DENOISING,)))
    return items


def _averaged(gradients: int) -> int:
    """Bytes on top of all gradients while a bucket of them is averaged: sent, summed, divided."""
    return 3 * min(BUCKET, gradients)


def _exchanged(estimate: Estimate, gradients: int, activations: int) -> list[Item]:
    """What devices send each other and each holds for a while.

    A student that stays gathered while it walks is there when most activations are not.
    """
    recipe, sizes, shards = estimate.recipe, estimate.parameters, estimate.shards
    if shards == 1:
        made_of = "averaged gradients; activations are gone then"
        return [Item("exchange", _averaged(gradients), made_of, moments=())]
    backbone, network, lora = estimate.backbone, sizes.network, recipe.student.mode == "lora"
    blocks = [count(block) for block in backbone.blocks(backbone.net)]
    whole, travels = 2 * max(blocks) + network - sum(blocks), WIDTHS[recipe.model.dtype]
    # With gradients: 2 B, 2 B and 4 B to be added up, or twice 4 B.
    exchanged, made_of = whole * 2 * FLOAT32, f"two blocks and the rest, gradients x {FLOAT32} B"
    if lora:
        exchanged, made_of = whole * travels, f"two blocks and the rest, whole x {travels} B"
    split = Split.of(
        recipe, network=network, trained=sizes.trained, shards=shards, room=estimate.room
    )
    weights, added_up = whole_bytes(recipe, network, shards)
    if split.keep_gathered:
        walking = weights + max(blocks) * travels + estimate.trace.no_grad
        if walking > exchanged + activations:
            exchanged, made_of = walking - activations, "the student, whole, as it walks"
    items = [Item("exchange", exchanged, made_of)]
    if split.reduce_once and added_up:
        items.append(Item("gradients of parts", added_up, "whole, until the last", (TRAINING,)))
    return items


def _base(estimate: Estimate, dtype: str) -> tuple[int, str]:
    """Bytes of a frozen network in some precision, or quantised; and how they come about."""
    recipe, network, backbone = estimate.recipe, estimate.parameters.network, estimate.backbone
    width = WIDTHS[dtype]
    if recipe.memory.base is None:
        return network * width, f"network x {width} B"
    quantised = sum(sum(_linear_sizes(block)) for block in backbone.blocks(backbone.net))
    size = round(quantised * BASES[recipe.memory.base]) + (network - quantised) * width
    return size, f"blocks' layers in {recipe.memory.base}, the rest x {width} B"


def _decoded(
    backbone: Backbone, base: str, width: int, moments: tuple[str, ...] = (TRAINING, PREVIEWS)
) -> Item:
    """Weights of a quantised base while they are decoded, to numbers of `width` bytes.

    In a backward pass torchao keeps those of a block that is recomputed. NF4 is decoded again
    instead: there one layer at a time has its codes in 8 bytes and three copies.
    """
    blocks = [_linear_sizes(block) or [0] for block in backbone.blocks(backbone.net)]
    if base == "nf4":
        size = max(map(max, blocks), default=0) * (8 + 3 * width)
        return Item("decoded weights", size, "the largest layer, at work", moments)
    size = max(map(sum, blocks), default=0) * width
    return Item("decoded weights", size, f"the largest block x {width} B", moments)


def _linear_sizes(block: nn.Module) -> list[int]:
    """Weights of each linear layer."""
    return [layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear)]
