"""What is in memory while training, item by item, on one of several devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from fewstep.config import OptimizerRecipe, Recipe
from fewstep.models.base import Backbone
from fewstep.objectives import TrainedNetwork, by_site
from fewstep.planning.counts import Parameters, count
from fewstep.planning.estimate import Estimate, micro_batch

FLOAT32 = 4
WIDTHS = {None: FLOAT32, "float32": FLOAT32, "bfloat16": 2}
"""Bytes of a number; None: trained weights as they are by default."""
BASES = {"int8": 1.0, "fp8": 1.0, "nf4": 1 / 2 + 1 / 64}
"""Bytes of a weight of the frozen base, scales included."""
MOMENTS = {"adamw": 4.0, "adamw8bit": 1 + 4 / 256, "adamwfp8": 1 + 4 / 256}
"""Bytes of a number of an optimizer's moments, scales included."""
BUCKET = 64 * 2**20 * FLOAT32  # gradients that are averaged at once, where each process has all


@dataclass(frozen=True)
class Item:
    """One thing in memory.

    Attributes:
        name: What it is.
        size: In bytes.
        made_of: How the size comes about.
        in_training: Whether it is on the device while training.
        in_encoding: Whether it is there while prompts are encoded ahead, before the networks are.
    """

    name: str
    size: int
    made_of: str
    in_training: bool = True
    in_encoding: bool = False


def peak(items: Sequence[Item]) -> int:
    """Bytes at the fullest moment, while training or while prompts are encoded ahead."""
    training = sum(item.size for item in items if item.in_training)
    return max(training, sum(item.size for item in items if item.in_encoding))


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
    moments = round(2 * trained * sum(MOMENTS[optimizer.name] for optimizer in optimizers(recipe)))
    samples = micro_batch(recipe, estimate.gpus)
    base, made_of = _base(estimate)
    on_host = "; on the host"
    items = [
        Item("shared base, frozen" if lora else "teacher, frozen", base // shards,
             made_of + _over(shards)),
        Item("student and fake teacher", 2 * trained * width, f"2 x trained x {width} B{split}"),
        Item("optimizers", moments,
             f"2 roles x 2 moments{split}{on_host * memory.offload_optimizer}",
             in_training=not memory.offload_optimizer),
        Item("gradients", trained * width, f"trained x {width} B{split}"),
        Item("activations and casts", _activations(estimate, sizes.trained * width),
             f"counted: {samples} sample{'s' * (samples > 1)} at a time, at the fullest moment"),
    ]  # fmt: skip
    if memory.base is not None:
        items.append(_decoded(estimate.backbone, memory.base, WIDTHS[recipe.model.dtype]))
    if recipe.ema:
        made_of = f"trained x {FLOAT32} B{split}{on_host * memory.offload_ema}"
        items.append(Item("running mean (EMA)", trained * FLOAT32, made_of,
                          in_training=not memory.offload_ema))  # fmt: skip
    if estimate.gpus > 1:
        items.append(_exchanged(estimate, sizes.trained * width))
    items += _frozen_parts(recipe, sizes)
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
    most = max(kept + one_call, student, trace.no_grad)
    beyond = max(most - gradients, 0) if trace.with_gradients else most
    averaging = estimate.gpus > 1 and estimate.shards == 1
    return max(beyond, kept + _averaged(gradients)) if averaging else beyond


def _of_objectives(networks: Iterable[TrainedNetwork]) -> int:
    """Bytes of networks that objectives bring along, which are whole on every device."""
    return round(
        sum(
            parameter.numel() * (2 * FLOAT32 + 2 * MOMENTS[network.optimizer.name])
            for network in networks
            for parameter in network.module.parameters()
        )
    )


def _over(parts: int) -> str:
    return f" / {parts} devices" if parts > 1 else ""


def _frozen_parts(recipe: Recipe, sizes: Parameters) -> list[Item]:
    """VAE and text encoders, which take no part in training."""
    offloaded, stored = recipe.memory.offload_vae, recipe.data.cache is not None
    ahead, width = recipe.data.encode_ahead and not stored, WIDTHS[recipe.model.dtype]
    why = "; never loaded" if stored else "; gone before the networks come" if ahead else ""
    return [
        Item("VAE", sizes.vae * width, f"VAE x {width} B{'; on the host' * offloaded}",
             in_training=not offloaded, in_encoding=ahead),
        Item("text encoders", sizes.encoders * width, f"encoders x {width} B{why}",
             in_training=not (stored or ahead), in_encoding=ahead),
    ]  # fmt: skip


def _averaged(gradients: int) -> int:
    """Bytes on top of all gradients while a bucket of them is averaged: sent, summed, divided."""
    return 3 * min(BUCKET, gradients)


def _exchanged(estimate: Estimate, gradients: int) -> Item:
    """What devices send each other and each holds for a while."""
    if estimate.shards == 1:
        made_of = "averaged gradients; activations are gone then"
        return Item("exchange", _averaged(gradients), made_of, in_training=False)
    backbone, network = estimate.backbone, estimate.parameters.network
    blocks = [count(block) for block in backbone.blocks(backbone.net)]
    whole = 2 * max(blocks) + network - sum(blocks)
    if estimate.recipe.student.mode == "lora":
        width = WIDTHS[estimate.recipe.model.dtype]
        return Item("exchange", whole * width, f"two blocks and the rest, whole x {width} B")
    made_of = f"two blocks and the rest, whole, with gradients x {FLOAT32} B"
    return Item("exchange", 2 * whole * FLOAT32, made_of)


def _base(estimate: Estimate) -> tuple[int, str]:
    """Bytes of the frozen network, and how they come about."""
    recipe, network, backbone = estimate.recipe, estimate.parameters.network, estimate.backbone
    width = WIDTHS[recipe.memory.teacher_dtype or recipe.model.dtype]
    if recipe.memory.base is None:
        return network * width, f"network x {width} B"
    quantised = sum(sum(_linear_sizes(block)) for block in backbone.blocks(backbone.net))
    size = round(quantised * BASES[recipe.memory.base]) + (network - quantised) * width
    return size, f"blocks' layers in {recipe.memory.base}, the rest x {width} B"


def _decoded(backbone: Backbone, base: str, width: int) -> Item:
    """Weights of a quantised base while they are decoded, to numbers of `width` bytes.

    In a backward pass torchao keeps those of a block that is recomputed. NF4 is decoded again
    instead: there one layer at a time has its codes in 8 bytes and three copies.
    """
    blocks = [_linear_sizes(block) or [0] for block in backbone.blocks(backbone.net)]
    if base == "nf4":
        size = max(map(max, blocks), default=0) * (8 + 3 * width)
        return Item("decoded weights", size, "the largest layer, at work")
    size = max(map(sum, blocks), default=0) * width
    return Item("decoded weights", size, f"the largest block x {width} B")


def _linear_sizes(block: nn.Module) -> list[int]:
    """Weights of each linear layer."""
    return [layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear)]
