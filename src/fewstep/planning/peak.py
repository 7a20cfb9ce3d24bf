"""The fullest moment of an iteration, on one of several devices, item by item."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fewstep.config import OptimizerRecipe, Recipe
from fewstep.models.base import Backbone
from fewstep.objectives import Objective, by_site
from fewstep.objectives.sites import AtAnchor
from fewstep.planning.evaluations import Asked, ask_once
from fewstep.planning.memory import BASES, MASTER, MOMENTS, WIDTHS, Item
from fewstep.planning.parameters import Parameters
from fewstep.planning.trace import Trace

BUCKET = 64 * 2**20 * MASTER  # gradients that are averaged at once, where each process has all


def micro_batch(recipe: Recipe, gpus: int) -> int:
    """Samples that one device works on at a time."""
    data = recipe.data
    return -(-(data.batch_size // gpus) // data.parts(gpus))


def together(recipe: Recipe) -> bool:
    """Whether a teacher answers a student update's questions in one batch."""
    return recipe.train.step == "fused" and recipe.train.batch_teachers


def questions(recipe: Recipe, objectives: Sequence[Objective]) -> Asked:
    """Batches that a call of a teacher answers at once; at least one, as of the simulation."""
    asked = ask_once(objectives) if together(recipe) else Asked()
    return Asked(teacher=max(asked.teacher, 1), fake_teacher=max(asked.fake_teacher, 1))


def growing(recipe: Recipe, gpus: int) -> bool:
    """Whether gradients come about as activations go: not where parts of a batch share them.

    Nor where they are split over devices, so that little of them stays on any.
    """
    split = recipe.student.mode == "full" and shards(recipe, gpus) > 1
    return recipe.data.parts(gpus) == 1 and not split


def keeps(recipe: Recipe, objectives: Sequence[Objective], gpus: int) -> bool:
    """Whether the student's answer at the anchor is kept while the fake teacher learns."""
    known = together(recipe) and "final" not in recipe.fake_teacher.target
    at_anchor = any(each.site == AtAnchor() for each in objectives)
    return recipe.data.parts(gpus) == 1 and known and at_anchor


def working(
    recipe: Recipe, objectives: Sequence[Objective], trace: Trace, *, gradients: int, gpus: int
) -> int:
    """Most bytes of activations and casts at once in an iteration, beyond all of the gradients.

    Graphs add up where the student is asked at several sites before its one backward pass, and
    where its answer at the anchor is kept while the fake teacher learns. Devices that average
    gradients do so when a role's other activations are gone.

    Args:
        recipe: What is trained.
        objectives: Its objectives.
        trace: A call of its network.
        gradients: Bytes of all gradients of a role.
        gpus: Devices that work together.
    """
    graphs = len(by_site(objectives)) if together(recipe) else 1
    kept = keeps(recipe, objectives, gpus) * trace.graph
    one = max(trace.forward, trace.backward)
    student = (graphs - 1) * trace.graph + max(one, trace.graph + trace.silent)
    most = max(kept + one, student, trace.silent)
    beyond = max(most - gradients, 0) if trace.growing else most
    averaging = gpus > 1 and shards(recipe, gpus) == 1
    return max(beyond, kept + averaged(gradients)) if averaging else beyond


def averaged(gradients: int) -> int:
    """Bytes on top of all gradients while a bucket of them is averaged: sent, summed, divided."""
    return 3 * min(BUCKET, gradients)


def held(
    recipe: Recipe, backbone: Backbone, sizes: Parameters, trace: Trace, *, gpus: int, work: int
) -> list[Item]:
    """Everything that training holds on one of `gpus` devices at its fullest moment.

    Args:
        recipe: What is trained.
        backbone: Its model, an outline.
        sizes: How many parameters there are.
        trace: A call of the network with a graph.
        gpus: Devices that work together.
        work: See `working`.
    """
    lora, memory = recipe.student.mode == "lora", recipe.memory
    parts = shards(recipe, gpus)
    split, trained_parts = f" / {parts} devices" if parts > 1 else "", 1 if lora else parts
    trained, width = sizes.trained // trained_parts, WIDTHS[recipe.model.dtype]
    master = WIDTHS[memory.trained_dtype or "float32"]
    base, told = base_size(recipe, backbone, sizes)
    also = f" / {trained_parts} devices" if trained_parts > 1 else ""
    moments = [MOMENTS[each.name] for each in optimizers(recipe)]
    on_host = "; on the host" if memory.offload_optimizer else ""
    items = [
        Item("shared base, frozen" if lora else "teacher, frozen", base // parts, f"{told}{split}"),
        Item("student and fake teacher", 2 * trained * master, f"2 x trained x {master} B{also}"),
        Item(
            "optimizers",
            round(2 * trained * sum(moments)),
            f"2 roles x 2 moments{also}{on_host}",
            counts=not memory.offload_optimizer,
        ),
    ]
    if memory.base is not None:
        items.append(decoded(backbone, memory.base, width))
    if recipe.ema:
        home = "; on the host" if memory.offload_ema else ""
        told = f"trained x {MASTER} B{also}{home}"
        items.append(
            Item("running mean (EMA)", trained * MASTER, told, counts=not memory.offload_ema)
        )
    items.append(Item("gradients", trained * master, f"trained x {master} B{also}"))
    samples = micro_batch(recipe, gpus)
    told = f"counted: {samples} sample{'s' * (samples > 1)} at a time, at the fullest moment"
    items.append(Item("activations and casts", work, told))
    if gpus > 1:
        items.append(exchanged(recipe, backbone, sizes, parts))
    return [*items, *rest(recipe, sizes, width)]


def rest(recipe: Recipe, sizes: Parameters, width: int) -> list[Item]:
    """What does not take part in training."""
    away, stored = recipe.memory.offload_vae, recipe.data.cache is not None
    ahead = recipe.data.encode_ahead and not stored
    told = f"VAE x {width} B{'; on the host' * away}"
    vae = Item("VAE", sizes.vae * width, told, counts=not away, before=ahead)
    why = "; never loaded" if stored else "; gone before the networks come" if ahead else ""
    size, told = sizes.encoders * width, f"encoders x {width} B{why}"
    return [vae, Item("text encoders", size, told, counts=not (stored or ahead), before=ahead)]


def optimizers(recipe: Recipe) -> tuple[OptimizerRecipe, OptimizerRecipe]:
    """The student's and the fake teacher's."""
    return recipe.student.optimizer, recipe.fake_teacher.optimizer


def shards(recipe: Recipe, gpus: int) -> int:
    """Devices that one copy of the networks is split over."""
    parallel = recipe.parallel
    if parallel.shard == "none":
        return 1
    return max(gpus // parallel.replicate, 1)


def exchanged(recipe: Recipe, backbone: Backbone, sizes: Parameters, parts: int) -> Item:
    """What the devices tell each other and each has to hold for a while."""
    if parts == 1:
        size = averaged(sizes.trained * WIDTHS[recipe.memory.trained_dtype or "float32"])
        return Item("exchange", size, "averaged gradients; activations are gone then", counts=False)
    widths = [_size(block) for block in backbone.blocks(backbone.net)]
    whole = 2 * max(widths) + sizes.network - sum(widths)
    if recipe.student.mode == "lora":
        each = WIDTHS[recipe.model.dtype]
        return Item("exchange", whole * each, f"two blocks and the rest, whole x {each} B")
    told = f"two blocks and the rest, whole, with gradients x {MASTER} B"
    return Item("exchange", 2 * whole * MASTER, told)


def base_size(recipe: Recipe, backbone: Backbone, sizes: Parameters) -> tuple[int, str]:
    """Bytes of the network that stays as it is, and how they come about."""
    memory = recipe.memory
    width = WIDTHS[memory.teacher_dtype or recipe.model.dtype]
    if memory.base is None:
        return sizes.network * width, f"network x {width} B"
    few = sum(sum(_linear(block)) for block in backbone.blocks(backbone.net))
    size = round(few * BASES[memory.base]) + (sizes.network - few) * width
    return size, f"blocks' layers in {memory.base}, the rest x {width} B"


def decoded(backbone: Backbone, base: str, width: int) -> Item:
    """Weights of a base in few bits while they are numbers, in a precision of some bytes.

    In a backward pass torchao keeps those of a block that is computed again, but for NF4, which it
    decodes once more: there a layer at a time has its codes in 8 bytes and three copies.
    """
    blocks = [_linear(block) for block in backbone.blocks(backbone.net)]
    if base == "nf4":
        most = max((max(sizes) for sizes in blocks if sizes), default=0)
        return Item("decoded weights", most * (8 + 3 * width), "the largest layer, at work")
    most = max((sum(sizes) for sizes in blocks), default=0)
    return Item("decoded weights", most * width, f"the largest block x {width} B")


def _linear(block: nn.Module) -> list[int]:
    """Weights of each linear layer."""
    return [each.weight.numel() for each in block.modules() if isinstance(each, nn.Linear)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
