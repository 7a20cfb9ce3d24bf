"""Files that a run writes, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.config import Recipe
from fewstep.planning.memory import FLOAT32
from fewstep.planning.parameters import Parameters


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


def files_of(recipe: Recipe, sizes: Parameters) -> list[File]:
    """Files of a finished run; an export, measurements and a report come later, on request."""
    steps, every = recipe.train.steps, recipe.preview.every
    previews = 1 + steps // every + (steps % every > 0)
    checkpoints = checkpoints_kept(recipe)
    height, width = recipe.resolution.height, recipe.resolution.width
    teacher = recipe.preview.count * 3 * height * width * FLOAT32
    trained = sizes.trained * FLOAT32
    groups = {"student": trained, "fake_teacher": trained, "optimizers": 4 * trained}
    if recipe.ema:
        groups["ema"] = trained
    return [
        File("config.yaml"),
        File("metrics.jsonl"),
        File("previews/previews.json"),
        File("previews/teacher-*.safetensors", 1, teacher),
        File("previews/step-*.png", previews),
        *(
            File(f"checkpoints/step-*/{group}.safetensors", checkpoints, checkpoints * size)
            for group, size in groups.items()
        ),
        File("checkpoints/step-*/state.json", checkpoints),
    ]


def checkpoints_kept(recipe: Recipe) -> int:
    """Most checkpoints that exist at once: the newest, and the best that are not among them."""
    steps, checkpoint = recipe.train.steps, recipe.checkpoint
    saved = set(range(checkpoint.every, steps + 1, checkpoint.every)) | {steps}
    scored = set(range(recipe.preview.every, steps + 1, recipe.preview.every)) | {steps}
    newest = min(checkpoint.keep_last, len(saved))
    return min(
        newest + checkpoint.keep_best, len(saved | (scored if checkpoint.keep_best else set()))
    )
