"""What is in memory while training, item by item, on one of several devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from fewstep.config import OptimizerRecipe, Recipe
from fewstep.models.base import Backbone
from fewstep.objectives import TrainedNetwork, by_site
from fewstep.planning.parameters import Parameters
from fewstep.planning.trace import Trace
from fewstep.train.step import Algorithm

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


# ----------------------------------------------------------------------------- what a recipe says


def optimizers(recipe: Recipe) -> tuple[OptimizerRecipe, OptimizerRecipe]:
    """The student's and the fake teacher's."""
    return recipe.student.optimizer, recipe.fake_teacher.optimizer


def shards(recipe: Recipe, gpus: int) -> int:
    """Devices that one copy of the networks is split over."""
    parallel = recipe.parallel
    return 1 if parallel.shard == "none" else max(gpus // parallel.replicate, 1)


def micro_batch(recipe: Recipe, gpus: int) -> int:
    """Samples that one device works on at a time."""
    data = recipe.data
    return -(-(data.batch_size // gpus) // data.parts(gpus))


def gradients_arise(recipe: Recipe, gpus: int) -> bool:
    """Whether gradients take the place of activations during a backward pass.

    Not where parts of a batch add to the same gradients, nor where gradients are split over
    devices, so that little of them stays on any.
    """
    split = recipe.student.mode == "full" and shards(recipe, gpus) > 1
    return recipe.data.parts(gpus) == 1 and not split


# ----------------------------------------------------------------------------------------- items


def activations(
    recipe: Recipe, algorithm: Algorithm, trace: Trace, *, gradients: int, gpus: int
) -> int:
    """Most bytes of activations and casts at once in an iteration, beyond all of the gradients.

    Graphs add up where the student is called at several sites before its one backward pass, and
    where its prediction at the anchor is kept while the fake teacher learns. Devices that average
    gradients do so when a role's other activations are gone.

    Args:
        recipe: What is trained.
        algorithm: What an iteration does.
        trace: A call of its network.
        gradients: Bytes of all gradients of a role.
        gpus: Devices that work together.
    """
    graphs = max(len(by_site(group)) for group in algorithm.backward_groups)
    kept = algorithm.reuses_anchor_prediction(recipe.data.parts(gpus)) * trace.graph
    one_call = max(trace.forward, trace.backward)
    student = (graphs - 1) * trace.graph + max(one_call, trace.graph + trace.no_grad)
    most = max(kept + one_call, student, trace.no_grad)
    beyond = max(most - gradients, 0) if trace.with_gradients else most
    averaging = gpus > 1 and shards(recipe, gpus) == 1
    return max(beyond, kept + _averaged(gradients)) if averaging else beyond


def held(
    recipe: Recipe, backbone: Backbone, sizes: Parameters, *, gpus: int, working: int
) -> list[Item]:
    """Everything that training holds on one of `gpus` devices at its fullest moment.

    Args:
        recipe: What is trained.
        backbone: Its model, on the meta device.
        sizes: Its numbers of parameters.
        gpus: Devices that work together.
        working: Bytes of `activations`.
    """
    lora, memory = recipe.student.mode == "lora", recipe.memory
    parts = shards(recipe, gpus)
    trained_parts = 1 if lora else parts  # adapters stay whole
    trained, width = sizes.trained // trained_parts, WIDTHS[memory.trained_dtype]
    split = _over(trained_parts)
    moments = round(2 * trained * sum(MOMENTS[optimizer.name] for optimizer in optimizers(recipe)))
    samples = micro_batch(recipe, gpus)

    def away(offloaded: bool) -> str:
        return "; on the host" if offloaded else ""

    base, made_of = _base(recipe, backbone, sizes)
    items = [
        Item("shared base, frozen" if lora else "teacher, frozen", base // parts,
             made_of + _over(parts)),
        Item("student and fake teacher", 2 * trained * width, f"2 x trained x {width} B{split}"),
        Item("optimizers", moments, f"2 roles x 2 moments{split}{away(memory.offload_optimizer)}",
             in_training=not memory.offload_optimizer),
        Item("gradients", trained * width, f"trained x {width} B{split}"),
        Item("activations and casts", working,
             f"counted: {samples} sample{'s' * (samples > 1)} at a time, at the fullest moment"),
    ]  # fmt: skip
    if memory.base is not None:
        items.append(_decoded(backbone, memory.base, WIDTHS[recipe.model.dtype]))
    if recipe.ema:
        made_of = f"trained x {FLOAT32} B{split}{away(memory.offload_ema)}"
        items.append(Item("running mean (EMA)", trained * FLOAT32, made_of,
                          in_training=not memory.offload_ema))  # fmt: skip
    if gpus > 1:
        items.append(_exchanged(recipe, backbone, sizes, parts))
    return [*items, *_frozen_parts(recipe, sizes)]


def of_objectives(networks: Iterable[TrainedNetwork]) -> list[Item]:
    """Networks that objectives bring along: weights, gradients and moments, whole everywhere."""
    size = sum(
        parameter.numel() * (2 * FLOAT32 + 2 * MOMENTS[network.optimizer.name])
        for network in networks
        for parameter in network.module.parameters()
    )
    made_of = "weights, gradients and moments"
    return [Item("networks of objectives", round(size), made_of)] if size else []


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


def _exchanged(recipe: Recipe, backbone: Backbone, sizes: Parameters, parts: int) -> Item:
    """What devices send each other and each holds for a while."""
    if parts == 1:
        size = _averaged(sizes.trained * WIDTHS[recipe.memory.trained_dtype])
        made_of = "averaged gradients; activations are gone then"
        return Item("exchange", size, made_of, in_training=False)
    blocks = [
        sum(parameter.numel() for parameter in block.parameters())
        for block in backbone.blocks(backbone.net)
    ]
    whole = 2 * max(blocks) + sizes.network - sum(blocks)
    if recipe.student.mode == "lora":
        width = WIDTHS[recipe.model.dtype]
        return Item("exchange", whole * width, f"two blocks and the rest, whole x {width} B")
    made_of = f"two blocks and the rest, whole, with gradients x {FLOAT32} B"
    return Item("exchange", 2 * whole * FLOAT32, made_of)


def _base(recipe: Recipe, backbone: Backbone, sizes: Parameters) -> tuple[int, str]:
    """Bytes of the frozen network, and how they come about."""
    memory = recipe.memory
    width = WIDTHS[memory.teacher_dtype or recipe.model.dtype]
    if memory.base is None:
        return sizes.network * width, f"network x {width} B"
    quantised = sum(sum(_linear_sizes(block)) for block in backbone.blocks(backbone.net))
    size = round(quantised * BASES[memory.base]) + (sizes.network - quantised) * width
    return size, f"blocks' layers in {memory.base}, the rest x {width} B"


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
