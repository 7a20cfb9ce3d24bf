"""What a run leaves on the disk: its checkpoints, byte by byte, and smaller files."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.config import Recipe
from fewstep.planning.estimate import Estimate
from fewstep.planning.memory import FLOAT32, HOST, WIDTHS, Item, moment_bytes, optimizers
from fewstep.train.roles import FAKE_TEACHER, STUDENT


@dataclass(frozen=True)
class File:
    """A file, or files of one kind.

    Attributes:
        path: Inside the run folder.
        count: How many there are at the end of the run.
        size: Of all of them in bytes; None: small.
    """

    path: str
    count: int = 1
    size: int | None = None


def checkpoint_groups(estimate: Estimate) -> dict[str, int]:
    """Bytes of the tensors in each file of a checkpoint.

    Weights are there once, in their own precision, and moments as they are; the frozen networks
    are not. The files' headers, some kilobytes, come on top.
    """
    recipe, numbers = estimate.recipe, sum(estimate.trained)
    weights = numbers * WIDTHS[recipe.memory.trained_dtype]
    groups = {STUDENT: weights, FAKE_TEACHER: weights}
    moments = sum(moment_bytes(each.name, estimate.trained) for each in optimizers(recipe))
    for name, network in estimate.calls.trained.items():
        groups[name] = sum(tensor.nbytes for tensor in network.module.state_dict().values())
        sizes = [parameter.numel() for parameter in network.module.parameters()]
        moments += moment_bytes(network.optimizer.name, sizes)
    groups["optimizers"] = moments
    return groups | ({"ema": numbers * FLOAT32} if recipe.ema else {})


def while_written(estimate: Estimate) -> Item:
    """What a checkpoint takes of the host's memory: all of it, or one file after the other."""
    recipe, groups = estimate.recipe, checkpoint_groups(estimate)
    aside = recipe.checkpoint.asynchronous
    if aside if aside is not None else estimate.gpus > 1:
        return Item("checkpoint", sum(groups.values()), "a copy, written meanwhile", (HOST,))
    return Item("checkpoint", max(groups.values()), "its largest file, when written", (HOST,))


def checkpoints_kept(recipe: Recipe) -> int:
    """Most checkpoints that exist at once: the newest, and the best that are not among them."""
    steps, checkpoint = recipe.train.steps, recipe.checkpoint
    saved = set(range(checkpoint.every, steps + 1, checkpoint.every)) | {steps}
    scored = set(range(recipe.preview.every, steps + 1, recipe.preview.every)) | {steps}
    newest = min(checkpoint.keep_last, len(saved))
    return min(
        newest + checkpoint.keep_best, len(saved | (scored if checkpoint.keep_best else set()))
    )


def files_of(estimate: Estimate) -> list[File]:
    """Files of a finished run; an export, measurements and a report come later, on request."""
    recipe = estimate.recipe
    steps, every = recipe.train.steps, recipe.preview.every
    previews = 1 + steps // every + (steps % every > 0)
    checkpoints = checkpoints_kept(recipe)
    height, width = recipe.resolution.height, recipe.resolution.width
    teacher = recipe.preview.count * 3 * height * width * FLOAT32
    return [
        File("config.yaml"),
        File("metrics.jsonl"),
        File("previews/previews.json"),
        File("previews/teacher-*.safetensors", 1, teacher),
        File("previews/step-*.png", previews),
        *(
            File(f"checkpoints/step-*/{group}.safetensors", checkpoints, checkpoints * size)
            for group, size in checkpoint_groups(estimate).items()
        ),
        File("checkpoints/step-*/state.json", checkpoints),
    ]
