"""What training keeps in memory, item by item, on one device."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fewstep.backbones.base import Backbone
from fewstep.config import Recipe
from fewstep.plan.parameters import Parameters

MASTER = 4  # bytes of a trained weight, a gradient, a moment, an averaged weight: float32
WIDTHS = {"float32": 4, "bfloat16": 2}
BASES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.52}
"""Bytes of a weight of the blocks, scales included; what is outside of them is little."""
MOMENTS = {"adamw": 4.0, "adamw8bit": 1.02, "adamwfp8": 1.02}
_ON_HOST = "; in the computer's memory"
_MODULATION = re.compile(r"norm|adaln|modulation|_mod\b|time_emb|temb", re.IGNORECASE)
_LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.")
_UNTOLD = 512  # text tokens, where the model does not say


@dataclass(frozen=True)
class Item:
    """One thing in memory.

    Attributes:
        name: What it is.
        size: In bytes.
        made_of: How the size comes about.
        counts: Whether it is there while training.
    """

    name: str
    size: int
    made_of: str
    counts: bool = True


def memory_of(recipe: Recipe, backbone: Backbone, sizes: Parameters) -> list[Item]:
    """Everything that training holds at its fullest moment, on one device.

    Working space of kernels, fragmentation and what the libraries keep come on top.
    """
    held, trained = WIDTHS[recipe.model.dtype], sizes.trained
    lora, memory = recipe.student.mode == "lora", recipe.memory
    base = "shared base, frozen" if lora else "teacher, frozen"
    frozen = BASES.get(memory.base or "", WIDTHS.get(memory.teacher_dtype or "", held))
    master = WIDTHS[memory.trained_dtype or "float32"]
    items = [
        Item(base, int(sizes.network * frozen), f"network x {frozen:g} B"),
        Item("student and fake teacher", 2 * trained * master, f"2 x trained x {master} B"),
        Item("gradients", trained * master, f"trained x {master} B: one role at a time"),
        optimizers(recipe, trained),
    ]
    if recipe.ema:
        away = memory.offload_ema
        told = f"trained x {MASTER} B{_ON_HOST if away else ''}"
        items.append(Item("running mean (EMA)", trained * MASTER, told, counts=not away))
    if held < master and not lora:
        told = f"the network at work in {recipe.model.dtype}: network x {held} B"
        items.append(Item("autocast copies", sizes.network * held, told))
    items.append(activations(recipe, backbone))
    away = memory.offload_vae
    told = f"VAE x {held} B{'; visits for previews' if away else ''}"
    items.append(Item("VAE", sizes.vae * held, told, counts=not away))
    gone = recipe.data.encode_ahead or recipe.data.cache is not None
    why = "; never loaded" if recipe.data.cache else "; left before training" if gone else ""
    told = f"encoders x {held} B{why}"
    return [*items, Item("text encoders", sizes.encoders * held, told, counts=not gone)]


def optimizers(recipe: Recipe, trained: int) -> Item:
    """Two moments of each trained weight, per role."""
    names = recipe.student.optimizer.name, recipe.fake_teacher.optimizer.name
    size = int(sum(2 * MOMENTS[name] for name in names) * trained)
    widths = " and ".join(f"{MOMENTS[name]:g}" for name in dict.fromkeys(names))
    away = recipe.memory.offload_optimizer
    told = f"2 roles x 2 moments x trained x {widths} B{_ON_HOST if away else ''}"
    return Item("optimizers", size, told, counts=not away)


def activations(recipe: Recipe, backbone: Backbone) -> Item:
    """What a backward pass needs, as a simple estimate.

    Every linear and convolution layer of a block, modulation aside, keeps its input and its output
    for every token; attention itself keeps nothing (as flash attention does). With checkpointing a
    block keeps its input alone, and the largest block is recomputed in full.
    """
    batch = -(-recipe.data.batch_size // recipe.data.accumulate)
    held = WIDTHS[recipe.model.dtype]
    image = image_tokens(backbone, recipe.resolution.height, recipe.resolution.width)
    text = text_tokens(backbone)
    blocks = list(_blocks(backbone, image, text))
    if every := int(recipe.student.gradient_checkpointing):
        again, kept = blocks[::every], [each for i, each in enumerate(blocks) if i % every]
        values = sum(first for first, _ in again) + max((full for _, full in again), default=0)
        values += sum(full for _, full in kept)
        how = "each block's input + the largest block"
        if kept:
            how = f"as recomputed every {every} blocks"
    else:
        values = sum(full for _, full in blocks)
        how = "inputs and outputs of all blocks' layers"
    told = f"estimate: {batch} sample{'s' * (batch > 1)} at a time, {image} + {text} tokens, {how}"
    return Item("activations", batch * values * held, f"{told}, {held} B")


def image_tokens(backbone: Backbone, height: int, width: int) -> int:
    """Tokens that the network's blocks work on for one picture; of a U-Net, before any halving."""
    shape = backbone.latent_shape(height, width)
    if len(shape) == 2:  # packed: [N, C]
        return shape[0]
    config = getattr(backbone.net, "config", {})
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    sides = patch if isinstance(patch, list | tuple) else [patch]
    area = sides[0] ** 2 if len(sides) == 1 else math.prod(sides)
    return math.prod(shape[1:]) // area


def text_tokens(backbone: Backbone) -> int:
    """Tokens of text beside those of the picture; none where text is only looked up."""
    if backbone.net_name == "unet":
        return 0
    told = getattr(backbone, "max_sequence_length", None)
    told = told or getattr(backbone.pipe, "tokenizer_max_length", None)
    return int(told or _UNTOLD)


def _blocks(backbone: Backbone, image: int, text: int) -> Iterator[tuple[int, int]]:
    """Numbers that each block keeps for one sample: its input, and all of its layers."""
    net = backbone.net
    names = {id(module): name for name, module in net.named_modules()}
    levels = getattr(getattr(net, "config", None), "block_out_channels", None)
    for block in backbone.blocks(net):
        tokens = image + text
        if levels:
            tokens = image // 4 ** _level(names.get(id(block), ""), len(levels))
        layers = [
            _width(module)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and not _MODULATION.search(name)
        ]
        if layers:
            yield tokens * layers[0][0], tokens * sum(a + b for a, b in layers)


def _level(name: str, levels: int) -> int:
    """How often the picture was halved where a block of a U-Net works."""
    found = _LEVEL.search(f"{name}.")
    if found is None:
        return levels - 1
    place = int(found[2])
    return place if found[1] == "down" else levels - 1 - place


def _width(module: nn.Module) -> tuple[int, int]:
    """Channels of a layer's input and output."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
